"""Quantization-aware training without a runner."""

import pytest
import torch

pytest.importorskip('mmengine')

from taskptq.calibration.calibrate import calibrate
from taskptq.prepare import QConfig, prepare
from taskptq.qat.model import move_weights
from taskptq.testing import tiny_batches, tiny_model


def prepared(pull):
    model = tiny_model('conv')
    batches = tiny_batches('conv')
    weight = {'type': 'LevelQuantizer', 'levels': 'binary', 'pull': pull}
    settings = {'weight': {**weight, 'num_bits': 1}, 'edge_bits': None}
    prepare(model, QConfig.from_dict(settings))
    calibrate(model, batches, forward=lambda model, batch: model(batch))
    return model


def weights_of(model):
    return {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if parameter.dim() == 4
    }


@pytest.mark.parametrize('pull', ['none', 'flip', 'backtrack'])
def test_backtracking_moves_weights_and_nothing_else_does(pull):
    torch.manual_seed(0)
    model = prepared({'type': pull})
    before = weights_of(model)
    for _ in range(3):
        move_weights(model)
    after = weights_of(model)
    changed = [n for n in before if not torch.equal(before[n], after[n])]
    assert bool(changed) == (pull == 'backtrack')
