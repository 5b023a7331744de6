"""Ranges of weights by the error of the output."""

import torch

from taskptq.core.code_grid import UniformCodes
from taskptq.core.functional import range_to_affine
from taskptq.reconstruction.rounding.output_ranges import search_output_range


def grid_of(low, high):
    """A 3-bit grid that may be asymmetric."""
    scale, zero_point = range_to_affine(
        low, high, symmetric=False, quant_min=0, quant_max=7
    )
    return UniformCodes(scale=scale, zero_point=zero_point, bounds=(0, 7))


def whole_range(weight):
    return grid_of(weight.amin(dim=2), weight.amax(dim=2))


def search(weight, hessian, grid=None):
    return search_output_range(
        weight, hessian, whole_range(weight) if grid is None else grid
    )


def output_error(weight, hessian, grid):
    error = weight - grid.values(grid.nearest(weight))
    return ((error @ hessian) * error).sum(dim=2)


def test_no_row_gets_worse_than_the_given_grid():
    x = torch.randn(2, 12, 50) * torch.logspace(-1, 1, 12)[None, :, None]
    weight, hessian = torch.randn(2, 4, 12), x @ x.transpose(1, 2)
    grid = whole_range(weight)
    found = search(weight, hessian)
    before = output_error(weight, hessian, grid)
    after = output_error(weight, hessian, found)
    assert bool((after <= before * (1 + 1e-5)).all())
    assert float(after.sum()) < 0.8 * float(before.sum())


def test_the_outlier_of_a_weak_input_is_clipped():
    weight = torch.linspace(-1, 1, 9)[None, None].clone()
    weight[..., 3] = 2.3
    seen = torch.ones(9)
    seen[3] = 1e-6
    found = search(weight, torch.diag(seen)[None])
    plain = search(weight, torch.eye(9)[None])
    assert float(found.scale) < 0.8 * float(plain.scale)


def test_an_input_that_is_always_zero_has_no_say():
    x = torch.randn(1, 6, 40)
    x[:, 3] = 0
    hessian = x @ x.transpose(1, 2)
    weight = torch.randn(1, 4, 6)
    weight[:, :, 3] = 0
    other = weight.clone()
    other[:, :, 3] = 0.1  # within the range of the others
    grid = whole_range(weight)
    ours = search(weight, hessian, grid)
    theirs = search(other, hessian, grid)
    assert torch.equal(ours.scale, theirs.scale)
    assert torch.equal(ours.zero_point, theirs.zero_point)


def test_one_grid_for_all_rows_minimizes_their_sum():
    weight = torch.randn(2, 3, 8)
    hessian = torch.eye(8).expand(2, 8, 8)
    low, high = weight.amin().reshape(1, 1), weight.amax().reshape(1, 1)
    grid = grid_of(low, high)
    found = search(weight, hessian, grid)
    assert found.shape == (1, 1)
    before = output_error(weight, hessian, grid).sum()
    assert float(output_error(weight, hessian, found).sum()) < float(before)
