"""The differentiable count of codes."""

import math

import pytest
import torch

from taskptq.core.entropy import code_counts, count_bits
from taskptq.core.soft_counter import (
    KERNELS,
    code_slopes,
    soft_bits,
    soft_counts,
)

CODES = torch.tensor(
    [-1.2, -0.4, -0.1, 0, 0.2, 0.3, 0.45, 1.1, 1.3, 2.6], dtype=torch.float64
)
SPAN = 3.8  # largest minus smallest
STEP = 1e-6


@pytest.mark.parametrize(
    ('kernel', 'resolution', 'bits'),
    [
        ('cosine', 64, 15.7096),
        ('linear', 64, 15.7125),
        ('triangular', 64, 15.7096),
        ('cosine', 8, 16.989),
        ('linear', 8, 17.653),
        ('triangular', 8, 16.836),
    ],
)
def test_bits_of_known_codes(kernel, resolution, bits):
    found = soft_bits(CODES, half_width=SPAN / resolution, kernel=kernel)
    assert float(found) == pytest.approx(bits, abs=6e-4)


def test_narrow_kernels_count_as_the_histogram_does():
    torch.manual_seed(0)
    codes = 3 * torch.randn(5000)
    exact = count_bits(code_counts(codes.round(), bounds=(-20, 20)))
    found = float(soft_bits(codes, half_width=1e-3))
    assert found == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize('kernel', KERNELS)
def test_counts_sum_to_the_codes(kernel):
    torch.manual_seed(0)
    codes = 4 * torch.randn(300)
    for half_width in (0.1, 0.5, 1.7):
        found = soft_counts(codes, half_width=half_width, kernel=kernel)
        assert float(found.counts.sum()) == pytest.approx(300)
        assert float(found.slopes.sum()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('kernel', KERNELS)
def test_the_gradient_is_that_of_finite_differences(kernel):
    codes = CODES.clone().requires_grad_(True)
    soft_bits(codes, half_width=0.37, kernel=kernel).backward()
    found = soft_counts(CODES, half_width=0.37, kernel=kernel)
    for index in range(len(CODES)):
        moved = CODES.clone()
        moved[index] += STEP
        change = soft_bits(moved, half_width=0.37, kernel=kernel)
        change -= soft_bits(CODES, half_width=0.37, kernel=kernel)
        # What goes straight through the rounding has no difference.
        place = int(CODES[index].round()) - found.low
        own = -found.slopes[place] / found.counts[place] / math.log(2)
        expected = float(change / STEP + own)
        assert float(codes.grad[index]) == pytest.approx(expected, abs=1e-4)


def test_slopes_point_away_from_frequent_codes():
    counts = torch.tensor([0.0, 2, 8, 80, 10, 0, 1])
    slopes = code_slopes(counts)
    assert slopes.shape == counts.shape
    assert (slopes[[1, 2]] < 0).all()
    assert slopes[4] > 0
    assert abs(float(slopes[3])) < abs(float(slopes[2]))
    assert (slopes[[0, 5]] == 0).all()
    assert (code_slopes(torch.zeros(4)) == 0).all()


def test_following_the_slope_saves_bits():
    torch.manual_seed(0)
    codes = (3 * torch.randn(20_000)).round()
    before = code_counts(codes, bounds=(-20, 20))
    pull = code_slopes(before)[(codes + 20).long()]
    steepest = pull.abs() > 0.5
    codes = torch.where(steepest, codes - pull.sign().float(), codes)
    after = code_counts(codes, bounds=(-20, 20))
    assert count_bits(after) < 0.95 * count_bits(before)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match='kernel'):
        soft_bits(CODES, half_width=0.5, kernel='gauss')
    with pytest.raises(ValueError, match='half_width=0'):
        soft_bits(CODES, half_width=0)
