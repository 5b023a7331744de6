"""Roundings between neighbouring levels."""

import pytest
import torch

from taskptq.core import LevelQuantizer, QuantSpec
from taskptq.core.levels import LEVELS
from taskptq.core.levels.rounding import LatentLevels, LevelRounding


def quantizer_of(name, weight, *, ch_axis=0):
    bits = LEVELS[name]().num_bits
    quantizer = LevelQuantizer(
        QuantSpec(num_bits=bits, ch_axis=ch_axis), levels=name
    )
    quantizer.calibrate_weight(weight)
    return quantizer


@pytest.fixture
def weight():
    return torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=['binary', 'ternary', 'two-plane', 'dual', 'mid-rise'])
def name(request):
    return request.param


@pytest.mark.parametrize('ch_axis', [None, 0, 1])
def test_starts_at_the_float_weight_and_ends_at_the_nearest_level(
    name, weight, ch_axis
):
    quantizer = quantizer_of(name, weight, ch_axis=ch_axis)
    rounding = LevelRounding(quantizer, weight)
    rows = quantizer.levels().detach()
    shape = [1] * 4
    if ch_axis is not None:
        shape[ch_axis] = -1
    low, high = rows[:, 0].view(shape), rows[:, -1].view(shape)
    inside = torch.minimum(torch.maximum(weight, low), high)
    torch.testing.assert_close(rounding(), inside, atol=1e-5, rtol=1e-4)
    assert torch.equal(rounding.codes(), quantizer.quantize(weight))
    rounding.soft = False
    assert torch.equal(
        rounding(), quantizer.dequantize(quantizer.quantize(weight))
    )


def test_gradient_is_that_of_the_interpolation(name, weight):
    weight = weight.double()
    rounding = LevelRounding(quantizer_of(name, weight.float()), weight)
    rounding.alpha.data = torch.linspace(-1, 1, weight.numel()).view_as(weight)
    rounding.alpha.data = rounding.alpha.data.double()
    weight_out = rounding()
    weight_out.sum().backward()
    step = 1e-4
    for index in [(0, 0, 0, 0), (3, 2, 1, 1)]:
        with torch.no_grad():
            rounding.alpha[index] += step
            slope = (rounding() - weight_out)[index] / step
            rounding.alpha[index] -= step
        assert slope.item() == pytest.approx(
            rounding.alpha.grad[index].item(), abs=2e-3
        )


def test_penalty_settles_roundings(weight):
    rounding = LevelRounding(quantizer_of('ternary', weight), weight)
    optimizer = torch.optim.Adam([rounding.alpha], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        (rounding().sum() * 0).backward()
        rounding.add_penalty_gradient(weight=torch.tensor(1.0), beta=2)
        optimizer.step()
    assert int(rounding.settled()) == weight.numel()


def test_leans_towards_any_code(name, weight):
    quantizer = quantizer_of(name, weight)
    rounding = LevelRounding(quantizer, weight)
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(
        0, quantizer.num_levels, weight.shape, generator=generator
    ).int()
    rounding.lean_towards(codes)
    assert torch.equal(rounding.codes(), codes)
    assert int(rounding.base.min()) >= 0
    assert int(rounding.base.max()) + 1 < quantizer.num_levels


def test_latent_weights_learn_codes_and_levels(name, weight):
    quantizer = quantizer_of(name, weight)
    rounding = LatentLevels(quantizer, weight)
    assert torch.equal(rounding.codes(), quantizer.quantize(weight))
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(weight.shape, generator=generator)
    rounding.scale.requires_grad_(True)
    before = rounding.codes()
    optimizer = torch.optim.Adam([rounding.alpha, rounding.scale], lr=0.05)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (rounding() - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(rounding.codes(), before)
    rounding.settle(quantizer)
    assert torch.equal(
        quantizer.dequantize(rounding.codes()), rounding().detach()
    )


def test_latent_weights_start_from_given_codes(weight):
    quantizer = quantizer_of('two-plane', weight)
    rounding = LatentLevels(quantizer, weight)
    codes = (quantizer.quantize(weight) + 1) % 4
    rounding.lean_towards(codes)
    assert torch.equal(rounding.codes(), codes)
