"""Rate and distortion of a weight."""

import math

import pytest
import torch

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
