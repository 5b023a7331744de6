"""Rate and distortion of a weight."""

import math

import pytest
import torch

from taskptq.core.entropy import code_counts, coded_bits
from taskptq.methods.l2_compression import rate_curve
from taskptq.methods.l2_compression.curves import ENTRY_BITS, code_bits


def test_rate_and_error_of_known_codes():
    weight = torch.tensor([0.0, 0.1, 0.9, 1.1, 1.4, 2.2, -1.0, -0.4])
    bits, error = code_bits(weight, 1.0, bounds=(-8, 7))
    # Codes 0 0 1 1 1 2 -1 0: three, three, one and one of eight.
    entropy = -(6 / 8 * math.log2(3 / 8) + 2 / 8 * math.log2(1 / 8)) * 8
    assert bits == pytest.approx(entropy + 4 * ENTRY_BITS)
    expected = sum(x * x for x in (0.1, 0.1, 0.1, 0.4, 0.2, 0.4))
    assert error == pytest.approx(expected, rel=1e-5)


def test_fine_grids_follow_high_rate_theory():
    torch.manual_seed(0)
    weight = torch.randn(200_000)
    bits, error = code_bits(weight, 0.25, bounds=(-128, 127))
    # Uniform noise of s^2 / 12; H = h(w) - log2(s) with h = 2.047 bits.
    assert error / 200_000 == pytest.approx(0.25**2 / 12, rel=0.02)
    assert bits / 200_000 == pytest.approx(2.047 + 2, abs=0.01)


def test_curves_go_from_fine_to_nothing():
    torch.manual_seed(0)
    curve = rate_curve(0.1 * torch.randn(64, 9), bounds=(-128, 127))
    assert list(curve.steps) == sorted(curve.steps)
    assert curve.bits[-1] == ENTRY_BITS
    assert curve.errors[-1] == pytest.approx(
        float(curve.weight.square().sum()), rel=1e-5
    )
    assert min(curve.errors) < 1e-4 * curve.errors[-1]
    assert curve.best(gain=1.0, price=1e9) == curve.bits.index(min(curve.bits))
    assert curve.best(gain=1.0, price=0.0) == curve.errors.index(
        min(curve.errors)
    )
    assert curve.at(curve.steps[9]) == (curve.bits[9], curve.errors[9])


def test_few_codes_clip_at_fine_steps():
    torch.manual_seed(0)
    curve = rate_curve(torch.randn(5000), bounds=(-2, 1))
    best = curve.best(gain=1.0, price=0.0)
    assert 0 < best < len(curve.steps) - 1
    assert curve.errors[0] > curve.errors[best]


def test_a_weight_of_zeros_takes_nothing():
    curve = rate_curve(torch.zeros(10), bounds=(-8, 7))
    assert curve.errors == (0.0,)


def dead_zone_codes(weight, *, edge, step):
    """L2's codes: c = w / 2e up to the edge, then uniform steps."""
    outside = weight.sign() * (0.5 + (weight.abs() - edge) / step)
    return torch.where(weight.abs() <= edge, weight / (2 * edge), outside)


def dead_zone_values(codes, *, edge, step):
    outside = codes.sign() * (edge + (codes.abs() - 0.5) * step)
    return torch.where(codes.abs() <= 0.5, 2 * edge * codes, outside)


def test_the_unified_transform_of_known_weights():
    weight = torch.tensor(
        [0, 0.01, -0.03, 0.04, 0.05, 0.08, -0.11, 0.25], dtype=torch.float64
    )
    codes = dead_zone_codes(weight, edge=0.04, step=0.05)
    expected = [0, 0.125, -0.375, 0.5, 0.7, 1.3, -1.9, 4.7]
    assert codes.tolist() == pytest.approx(expected)
    back = dead_zone_values(codes, edge=0.04, step=0.05)
    assert back.tolist() == pytest.approx(weight.tolist())
    rounded = codes.round()
    assert rounded.tolist() == [0, 0, 0, 0, 1, 1, -2, 5]
    values = dead_zone_values(rounded, edge=0.04, step=0.05)
    expected = [0, 0, 0, 0, 0.065, 0.065, -0.115, 0.265]
    assert values.tolist() == pytest.approx(expected)


@pytest.mark.parametrize('rate', [1.0, 2.0, 3.0])
@pytest.mark.parametrize('shape', ['normal', 'laplace'])
def test_prices_beat_every_dead_zone(rate, shape):
    """Why there is no such grid: rounding by price on equal steps is better.

    It stays an affine grid, which every runtime has.
    """
    torch.manual_seed(0)
    weight = torch.randn(20_000)
    if shape == 'laplace':
        weight *= torch.empty(20_000).exponential_().sqrt()

    def dead_zone(step, share):
        edge = share * step
        codes = dead_zone_codes(weight, edge=edge, step=step).round()
        values = dead_zone_values(codes, edge=edge, step=step)
        counts = code_counts(codes, bounds=(-2000, 2000))
        return coded_bits(counts), float((values - weight).square().sum())

    own = error_at(rate, lambda s: code_bits(weight, s, bounds=(-128, 127)))
    others = [
        error_at(rate, lambda s, share=share: dead_zone(s, share))
        for share in (0.5, 0.6, 0.8, 1.0)
    ]
    assert own < 0.99 * min(others)


def error_at(rate, measured):
    """Return the squared error at a rate in bits per weight."""
    low, high = 0.05, 6.0
    for _ in range(14):
        middle = math.sqrt(low * high)
        if measured(middle)[0] > rate * 20_000:
            low = middle
        else:
            high = middle
    return measured(high)[1]
