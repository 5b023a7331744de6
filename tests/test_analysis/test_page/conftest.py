"""A tiny model, float and quantized, and a file of it."""

import copy

import pytest
import torch

from taskptq.calibration import calibrate
from taskptq.core.switches import enable
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction import freeze
from taskptq.testing import tiny_batches, tiny_model

QCONFIG = dict(
    weight=dict(num_bits=4), activation=dict(num_bits=4), edge_bits=8
)


def run(model, batch):
    return model(batch)


@pytest.fixture(scope='module')
def pair():
    """Float weights in the quantized structure, the quantized model, data."""
    torch.manual_seed(0)
    model, batches = tiny_model('conv').eval(), tiny_batches('conv')
    twin = copy.deepcopy(model)
    for one in (model, twin):
        prepare(one, QConfig.from_dict(QCONFIG), batch=batches[0], forward=run)
    calibrate(model, batches, forward=run)
    freeze(model)
    enable(model)
    return twin, model, batches
