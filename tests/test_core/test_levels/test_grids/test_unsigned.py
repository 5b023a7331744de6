"""Zero or a size."""

import pytest
import torch

from taskptq.calibration.calibrate import calibrate
from taskptq.core import enable
from taskptq.core.levels.grids.unsigned import Unsigned
from taskptq.core.levels.levels import fit, nearest_level
from taskptq.prepare import QConfig, prepare
from taskptq.testing import tiny_batches, tiny_model

ATTENTION = torch.tensor([[2.0, 1.0, 0.0, 0.0]]).softmax(dim=1)


def test_attention_of_three_sizes():
    expected = {1.0: [1, 0, 0, 0], 0.5: [0.5, 0, 0, 0]}
    expected[0.25] = [0.25, 0.25, 0, 0]
    for size, values in expected.items():
        levels, _ = Unsigned().ordered(torch.tensor([[size]]))
        found = levels.gather(1, nearest_level(ATTENTION, levels))
        assert found.tolist() == [values]


def test_fit_keeps_what_a_map_points_at():
    logits = 2 * torch.randn(
        64, 64, generator=torch.Generator().manual_seed(0)
    )
    maps = logits.softmax(dim=1).reshape(1, -1)
    levels, _ = Unsigned().ordered(fit(Unsigned(), maps))
    codes = nearest_level(maps, levels)
    error = (maps - levels.gather(1, codes)).square().sum()
    # About a third is lost, and few entries are kept
    assert float(error / maps.square().sum()) < 0.36
    assert 0.01 < float(codes.float().mean()) < 0.08


def test_attention_maps_of_one_bit():
    model, batches = tiny_model('transformer'), tiny_batches('transformer')
    settings = dict(
        type='LevelQuantizer',
        levels='unsigned',
        num_bits=1,
        observer=dict(type='MSEObserver'),
    )
    prepare(model, QConfig.from_dict(dict(softmax=settings)))
    calibrate(model, batches, forward=lambda model, batch: model(batch))
    enable(model)
    quantizer = model.layers[0].self_attn.softmax_quantizer
    maps = []
    handle = quantizer.register_forward_hook(
        lambda _module, _args, out: maps.append(out.detach())
    )
    quantizer.coefficients.requires_grad_(True)
    model(batches[0]).sum().backward()
    handle.remove()
    low, high = maps[0].unique().tolist()
    assert low == 0.0
    assert high == pytest.approx(quantizer.coefficients.item())
    assert float(quantizer.coefficients.grad.abs()) > 0
