import math

import pytest
import torch

from taskptq.methods.sparsity.allocations import (
    erk_rates,
    exact_counts,
    fixed_masks,
    scaled_masks,
)
from tests.test_methods.test_sparsity.test_masks import A, B

SHAPES = [(32, 3, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (10, 64)]


@pytest.mark.parametrize(
    ('rate', 'expected'),
    [
        (0.5, [0, 0.3693, 0.5857, 0]),
        (0.8, [0, 0.7689, 0.8482, 0]),
        (0.9, [0.1366, 0.8993, 0.9339, 0]),
    ],
)
def test_erk_rates(rate, expected):
    rates = erk_rates(SHAPES, rate)
    assert rates == pytest.approx(expected, abs=5e-5)
    sizes = [math.prod(shape) for shape in SHAPES]
    removed = sum(r * s for r, s in zip(rates, sizes, strict=True))
    assert removed == pytest.approx(rate * sum(sizes))


def test_relative_thresholds_meet_the_global_rate():
    """Thresholds .25 and .03 up to a common factor, at 60 % of 20."""
    masks = scaled_masks([A.abs(), B.abs()], [0.25, 0.03], rate=0.6)
    zeros = [int((~mask).sum()) for mask in masks]
    assert zeros == [5, 7]  # .625 and .58333


def test_l2_meets_half_exactly():
    """One threshold on |w| / ||W|| that counts ties would remove 11."""
    masks = fixed_masks([A, B], rate=0.5, allocation='l2')
    assert sum(int((~mask).sum()) for mask in masks) == 10


@pytest.mark.parametrize('allocation', ['uniform', 'erk', 'l2'])
@pytest.mark.parametrize('rate', [0.0, 0.3333, 0.7, 0.9, 0.997])
def test_every_allocation_is_exact(allocation, rate):
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(s, generator=generator) for s in SHAPES]
    masks = fixed_masks(weights, rate=rate, allocation=allocation)
    total = sum(w.numel() for w in weights)
    zeros = sum(int((~mask).sum()) for mask in masks)
    assert zeros == round(rate * total)


def test_uniform_gives_each_layer_its_share():
    weights = [torch.randn(s) for s in SHAPES]
    masks = fixed_masks(weights, rate=0.7, allocation='uniform')
    for mask in masks:
        zeros = int((~mask).sum())
        assert abs(zeros - 0.7 * mask.numel()) <= 1


def test_counts_respect_full_layers():
    assert exact_counts([1.0, 0.1], [4, 10], 6) == [4, 2]
    assert exact_counts([0.9, 0.9], [10, 10], 2) == [1, 1]
    with pytest.raises(ValueError, match='count=21 of 20 weights'):
        exact_counts([1.0, 1.0], [10, 10], 21)


def test_an_unknown_allocation_is_refused():
    with pytest.raises(ValueError, match="allocation='learned'"):
        fixed_masks([A], rate=0.5, allocation='learned')
