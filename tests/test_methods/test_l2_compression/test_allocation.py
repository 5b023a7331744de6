"""Bits are shared out by what errors cost."""

import math

import pytest
import torch

from taskptq.methods.l2_compression import allocate, rate_curve

BOUNDS = (-128, 127)


@pytest.fixture(scope='module')
def curves():
    torch.manual_seed(0)
    weights = {
        'wide': torch.randn(40_000),
        'narrow': 0.05 * torch.randn(40_000),
        'small': torch.randn(3000),
    }
    return {k: rate_curve(w, bounds=BOUNDS) for k, w in weights.items()}


@pytest.mark.parametrize('mean', [1.5, 3.2, 5.0])
def test_the_budget_is_met_within_a_thousandth(curves, mean):
    budget = mean * 83_000
    gains = dict.fromkeys(curves, 1.0)
    found = allocate(curves, gains=gains, budget=budget)
    assert 0.999 * budget <= found.total_bits <= budget
    for name, curve in curves.items():
        assert found.bits[name] == curve.at(found.steps[name])[0]


def test_steps_go_with_the_root_of_the_gain(curves):
    gains = {'wide': 1.0, 'narrow': 16.0, 'small': 1.0}
    found = allocate(curves, gains=gains, budget=5 * 83_000)
    # s ~ g^(-1/2); steps lie on a quarter of an octave.
    ratio = found.steps['wide'] / found.steps['narrow']
    assert abs(math.log2(ratio) - 2) <= 0.26
    assert found.bits['narrow'] < found.bits['wide']


def test_equal_slopes_beat_equal_bits(curves):
    gains = {'wide': 1.0, 'narrow': 1.0, 'small': 100.0}
    found = allocate(curves, gains=gains, budget=3 * 83_000)
    equal = 0.0
    for name, curve in curves.items():
        index = min(
            i
            for i, bits in enumerate(curve.bits)
            if bits <= 3 * curve.weight.numel()
        )
        equal += gains[name] * curve.errors[index]
    assert found.loss < 0.7 * equal


def test_an_impossible_budget_is_refused(curves):
    with pytest.raises(ValueError, match=r'take at least \d+ bytes'):
        allocate(curves, gains=dict.fromkeys(curves, 1.0), budget=8.0)
