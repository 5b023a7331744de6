"""Ranges of weights by the error of the output."""

import pytest
import torch

from taskptq.core import AffineQuantizer, QuantSpec
from taskptq.core.functional import range_to_affine
from taskptq.reconstruction.rounding.output_ranges import (
    nearest_codes,
    search_output_range,
)

BOUNDS = (0, 7)


@pytest.fixture
def quantizer():
    """A 3-bit grid; only its bounds and symmetry are read."""
    made = AffineQuantizer(QuantSpec(num_bits=3, ch_axis=0))
    made.set_bounds(signed=False)
    return made


def whole_range(weight):
    low, high = weight.amin(dim=2), weight.amax(dim=2)
    return range_to_affine(
        low, high, symmetric=False, quant_min=0, quant_max=7
    )


def search(weight, hessian, quantizer, grid=None):
    return search_output_range(
        weight,
        hessian,
        quantizer,
        grid=whole_range(weight) if grid is None else grid,
        to_codes=nearest_codes(BOUNDS),
    )


def output_error(weight, hessian, grid):
    codes = nearest_codes(BOUNDS)(weight, *grid)
    error = weight - grid[0][..., None] * (codes - grid[1][..., None])
    return ((error @ hessian) * error).sum(dim=2)


def test_no_row_gets_worse_than_the_given_grid(quantizer):
    x = torch.randn(2, 12, 50) * torch.logspace(-1, 1, 12)[None, :, None]
    weight, hessian = torch.randn(2, 4, 12), x @ x.transpose(1, 2)
    grid = whole_range(weight)
    found = search(weight, hessian, quantizer)
    before = output_error(weight, hessian, grid)
    after = output_error(weight, hessian, found)
    assert bool((after <= before * (1 + 1e-5)).all())
    assert float(after.sum()) < 0.8 * float(before.sum())


def test_the_outlier_of_a_weak_input_is_clipped(quantizer):
    weight = torch.linspace(-1, 1, 9)[None, None].clone()
    weight[..., 3] = 2.3
    seen = torch.ones(9)
    seen[3] = 1e-6
    scale, _ = search(weight, torch.diag(seen)[None], quantizer)
    plain, _ = search(weight, torch.eye(9)[None], quantizer)
    assert float(scale) < 0.8 * float(plain)


def test_an_input_that_is_always_zero_has_no_say(quantizer):
    x = torch.randn(1, 6, 40)
    x[:, 3] = 0
    hessian = x @ x.transpose(1, 2)
    weight = torch.randn(1, 4, 6)
    weight[:, :, 3] = 0
    other = weight.clone()
    other[:, :, 3] = 0.1  # within the range of the others
    grid = whole_range(weight)
    ours = search(weight, hessian, quantizer, grid)
    theirs = search(other, hessian, quantizer, grid)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_one_grid_for_all_rows_minimizes_their_sum(quantizer):
    weight = torch.randn(2, 3, 8)
    hessian = torch.eye(8).expand(2, 8, 8)
    low, high = weight.amin().reshape(1, 1), weight.amax().reshape(1, 1)
    grid = range_to_affine(
        low, high, symmetric=False, quant_min=0, quant_max=7
    )
    found = search(weight, hessian, quantizer, grid)
    assert found[0].shape == found[1].shape == (1, 1)
    wide = [part.expand(2, 3) for part in grid]
    best = [part.expand(2, 3) for part in found]
    before = output_error(weight, hessian, wide).sum()
    assert float(output_error(weight, hessian, best).sum()) < float(before)
