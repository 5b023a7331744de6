"""One unit, through every combination of closed form and training."""

import copy

import pytest
import torch
from torch import nn

from taskptq.core import float_only, quantizing
from taskptq.modules.base import quant_modules
from taskptq.reconstruction import MSEReconLoss, unit_fit
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.reconstruction.set_loss import set_loss
from taskptq.reconstruction.unit_fit import fit_unit

LOSS = MSEReconLoss()
MATCHED = dict(match_float=True, output_ranges=True, bias_correction=True)


@pytest.fixture
def block(quantized, plan, random_images):
    """A calibrated first block with its data."""
    batches = random_images(num_batches=3)
    model = quantized('conv', batches, bits=3)
    for _, layer in quant_modules(model):
        layer.bias = nn.Parameter(torch.zeros(layer.weight.shape[0]))
    capturer = plan(model, batches)
    capturer.capture_float()
    data = UnitData(capturer, 0, cache=capturer.cache, rows_per_image=8)
    data.compute('float', keep=None)
    return capturer.plans[0].unit, data


def fitted(block, config):
    unit, data = block
    torch.manual_seed(0)
    result = fit_unit(unit, data, config, loss=LOSS)
    return result, set_loss(unit, data, LOSS)


def test_set_loss_is_the_mean_over_calls(block):
    unit, data = block
    losses = []
    with torch.no_grad():
        for batch in range(3):
            with float_only(unit.module):
                target = data.run('float', 0, batch)
            with quantizing(unit.module):
                error = data.run('quant', 0, batch) - target
            losses.append(error.square().mean() / target.square().mean())
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(
        torch.tensor(set_loss(unit, data, LOSS)), expected
    )


@pytest.mark.parametrize(
    'settings',
    [
        dict(rounding='nearest', learn_scales=False, bias_correction=True),
        dict(rounding='nearest', learn_scales=False, output_ranges=True),
        dict(rounding='gptq'),
        dict(rounding='gptq', **MATCHED),
    ],
    ids=['bias', 'ranges', 'gptq', 'matched'],
)
def test_closed_form_beats_nearest(block, quick, settings):
    unit, data = block
    nearest = set_loss(unit, data, LOSS)
    result, loss = fitted(block, quick(**settings))
    assert result.steps == 0
    assert loss < nearest


def test_training_goes_on_from_solved_codes(block, quick):
    solved = fitted(copy.deepcopy(block), quick(rounding='gptq', **MATCHED))
    config = quick(start='gptq', weight_lr=0.2, drop_prob=0.0, **MATCHED)
    result, loss = fitted(block, config)
    assert result.steps == 30
    assert loss <= solved[1]
    assert result.set_loss_start == pytest.approx(solved[1])
    assert result.flipped < 0.3


def test_training_that_harms_is_undone(block, quick, monkeypatch):
    """All that it may change comes back: codes, biases and ranges."""
    solved, spoiled = copy.deepcopy(block), copy.deepcopy(block)
    fitted(solved, quick(rounding='gptq', **MATCHED))

    def spoil(unit, *args, **kwargs):
        result = unit_fit.UnitResult(name=unit.name, steps=1)
        for _, layer in unit.layers():
            layer.set_codes('weight', layer.codes() * 0)
            with torch.no_grad():
                layer.input_quantizer.scale.mul_(3)
        return result

    monkeypatch.setattr(unit_fit, 'train_unit', spoil)
    result, _ = fitted(spoiled, quick(start='gptq', **MATCHED))
    assert result.taken_back
    pairs = zip(solved[0].layers(), spoiled[0].layers(), strict=True)
    for (_, ours), (_, theirs) in pairs:
        assert torch.equal(ours.codes(), theirs.codes())
        assert torch.equal(ours.quantized_bias(), theirs.quantized_bias())
        scales = [x.input_quantizer.scale for x in (ours, theirs)]
        assert torch.equal(*scales)
