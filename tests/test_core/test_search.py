"""Searches for ranges and points: bounds, ties and equal results."""

import math

import pytest
import torch

from taskptq.core import QuantSpec, range_errors
from taskptq.core.search import minimize_bounded, search_range


def test_chunks_change_nothing(monkeypatch):
    values = torch.randn(6, 200)
    spec = QuantSpec(num_bits=3)
    whole = search_range(values, spec=spec, signed=True)
    monkeypatch.setattr(range_errors, 'CHUNK_ELEMENTS', 1300)
    parts = search_range(values, spec=spec, signed=True)
    for one, two in zip(whole, parts, strict=True):
        assert torch.equal(one, two)


def test_channels_are_independent():
    values = torch.randn(6, 200) * torch.logspace(-3, 3, 6)[:, None]
    spec = QuantSpec(num_bits=3)
    low, high = search_range(values, spec=spec, signed=True)
    for i in range(6):
        alone = search_range(values[i : i + 1], spec=spec, signed=True)
        torch.testing.assert_close(low[i : i + 1], alone[0])
        torch.testing.assert_close(high[i : i + 1], alone[1])


def test_weights_are_multiplicities():
    values = torch.randn(1, 50)
    weights = torch.randint(1, 5, (50,))
    spec = QuantSpec(num_bits=3)
    found = search_range(
        values, spec=spec, signed=True, weights=weights.float()
    )
    repeated = values[0].repeat_interleave(weights)[None]
    expected = search_range(repeated, spec=spec, signed=True)
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize('symmetric', [True, False])
def test_values_on_a_grid_keep_their_range(symmetric):
    spec = QuantSpec(num_bits=4, symmetric=symmetric)
    values = torch.arange(16.0)[None] * 0.25
    low, high = search_range(values, spec=spec, signed=False)
    assert low.item() == 0
    assert high.item() == pytest.approx(3.75, rel=0.02)


def test_dead_channel_stays_dead():
    low, high = search_range(
        torch.zeros(2, 5), spec=QuantSpec(num_bits=2), signed=False
    )
    assert low.tolist() == high.tolist() == [0, 0]


def test_minimizes_many_functions_at_once():
    best = torch.tensor([0.02, 0.31, 0.5, 0.9])
    low, high = torch.full((4,), 0.01), torch.tensor([1.0, 1.0, 0.5, 0.7])
    calls = []

    def error(x):
        calls.append(x)
        return (x - best).abs() + 1

    point, value = minimize_bounded(error, low=low, high=high)
    expected = torch.minimum(best, high)
    torch.testing.assert_close(point, expected, rtol=2e-3, atol=0)
    torch.testing.assert_close(value, error(point))
    assert len(calls) == 32 + 2 + 12 + 1
    assert all(((x >= low * 0.999) & (x <= high)).all() for x in calls)


@pytest.mark.parametrize('phase', [0.0, 0.4, 0.8])
def test_local_minima_do_not_catch_it(phase):
    """Waves as a power grid's error has them, on a slow trend."""

    def error(x):
        octaves = x.log2()
        wave = torch.cos(2 * math.pi * (octaves + phase))
        return (octaves + 2.7).square() - wave

    dense = torch.logspace(-6.5, 0, 20_000, base=2)
    point, value = minimize_bounded(
        error, low=dense[:1], high=dense[-1:], num_candidates=48
    )
    assert value.item() <= error(dense).min().item() + 1e-3
    assert point.item() == pytest.approx(
        dense[error(dense).argmin()].item(), rel=0.02
    )


@pytest.mark.parametrize('symmetric', [True, False])
def test_of_equal_ranges_the_widest_is_taken(symmetric):
    """It clips fewer of the values that calibration did not see."""
    values = torch.tensor([[-1.0, 0.5, 2.0]])
    low, high = search_range(
        values,
        spec=QuantSpec(num_bits=3, symmetric=symmetric),
        signed=True,
        weights=torch.zeros(3),
        refine_rounds=1,
    )
    # The refinement of each end goes up to 1.2 times the first sweep's.
    widest = 1.0 if symmetric else 1.2
    assert (low.item(), high.item()) == pytest.approx((-widest, 2 * widest))


def test_of_equal_points_the_first_is_kept():
    low, high = torch.full((3,), 0.5), torch.full((3,), 2.0)
    point, value = minimize_bounded(torch.zeros_like, low=low, high=high)
    assert torch.equal(point, low)
    assert value.tolist() == [0, 0, 0]


def test_between_equal_points_the_search_goes_right():
    """The larger scale clips less."""

    def error(x):
        return torch.where((x > 1.7) & (x < 1.9), 0.0, 1.0)

    # Both ends and both points of the first golden section give 1.
    point, value = minimize_bounded(
        error,
        low=torch.ones(1),
        high=torch.full((1,), 2.0),
        num_candidates=2,
    )
    assert value.item() == 0
    assert 1.7 < point.item() < 1.9
