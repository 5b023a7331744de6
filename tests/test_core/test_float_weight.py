import copy

import pytest
import torch

from taskptq.core import (
    AffineQuantizer,
    FloatQuantizer,
    FreeWeight,
    LatentWeight,
    LearnedRounding,
    MinMaxObserver,
    QuantSpec,
)
from taskptq.modules import QuantConv2d
from taskptq.modules.base import Scheme

WEIGHT = torch.tensor([[0.6, -0.2, 0.4], [-3.0, 1.0, 0.5]])
MASK = torch.tensor([[True, False, True], [False, True, True]])


def masked_quantizer(num_bits=4, *, symmetric=False):
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, ch_axis=0)
    quantizer = AffineQuantizer(spec, observer=MinMaxObserver(spec))
    quantizer.observer.observe(WEIGHT)
    quantizer.calibrate()
    quantizer.mask = MASK
    return quantizer


def test_a_float_weight_passes_but_for_its_mask():
    quantizer = FloatQuantizer(QuantSpec())
    assert torch.equal(quantizer(WEIGHT), WEIGHT)
    quantizer.mask = MASK
    assert torch.equal(quantizer(WEIGHT), WEIGHT)  # off
    quantizer.enabled = True
    assert torch.equal(quantizer(WEIGHT), WEIGHT * MASK)
    assert not quantizer.calibrate()
    assert not quantizer.calibrated
    quantizer.frozen = True
    assert torch.equal(quantizer(WEIGHT), WEIGHT)


@pytest.mark.parametrize('symmetric', [True, False])
def test_masked_elements_have_the_code_of_zero(symmetric):
    quantizer = masked_quantizer(symmetric=symmetric)
    zero = quantizer.zero_point.long().reshape(-1, 1).expand(2, 3)
    codes = quantizer.quantize(WEIGHT).long()
    assert torch.equal(codes[~MASK], zero[~MASK])
    assert (quantizer.fake_quantize(WEIGHT)[~MASK] == 0).all()
    assert (codes[MASK] != zero[MASK]).all()


def test_masks_are_not_part_of_the_state():
    quantizer = masked_quantizer()
    assert 'mask' not in quantizer.state_dict()
    twin = copy.deepcopy(quantizer)
    assert torch.equal(twin.mask, MASK)
    twin.load_state_dict(quantizer.state_dict())


def test_a_free_weight_starts_where_it_was_and_moves_by_its_channel():
    free = FreeWeight(WEIGHT)
    torch.testing.assert_close(free(), WEIGHT)
    assert float(free.settled()) == WEIGHT.numel()
    with torch.no_grad():
        free.alpha += 1
    step = (free() - WEIGHT).detach()
    expected = WEIGHT.abs().amax(dim=1, keepdim=True) / 127
    torch.testing.assert_close(step, expected.expand_as(WEIGHT))
    free.lean_towards(2 * WEIGHT)
    torch.testing.assert_close(free.codes(), 2 * WEIGHT)


def test_a_dead_channel_can_be_held():
    free = FreeWeight(torch.zeros(2, 3))
    assert torch.equal(free(), torch.zeros(2, 3))


@pytest.mark.parametrize('kind', ['rounding', 'latent', 'float'])
def test_training_leaves_masked_weights_at_zero(kind):
    """Whatever trains, and whatever it learned, zeros stay zeros."""
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(4, 6, 3)
    layer = QuantConv2d.from_float(conv, scheme=Scheme())
    spec = QuantSpec(num_bits=4, symmetric=False, ch_axis=0)
    layer.weight_quantizer = (
        FloatQuantizer(spec)
        if kind == 'float'
        else AffineQuantizer(spec, observer=MinMaxObserver(spec))
    )
    mask = torch.rand_like(conv.weight) > 0.6
    layer.weight_quantizer.mask = mask
    layer.calibrate_weights()
    (rounding,) = layer.start_rounding(latent=kind == 'latent').values()
    expected = {'rounding': LearnedRounding, 'latent': LatentWeight}
    assert type(rounding) is expected.get(kind, FreeWeight)
    layer.weight_quantizer.enabled = True
    x, target = torch.randn(8, 4, 5, 5), torch.randn(8, 6, 3, 3)
    optimizer = torch.optim.Adam([rounding.alpha], lr=0.3)
    before = layer.quantized_weight().detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    assert (layer.quantized_weight()[~mask] == 0).all()
    layer.finish_rounding()
    layer.freeze()
    assert (layer.weight[~mask] == 0).all()
    assert not torch.equal(layer.weight, before)
    assert layer.weight_quantizer.mask is None
