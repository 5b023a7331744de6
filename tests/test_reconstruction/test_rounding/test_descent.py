"""Coordinate descent never raises the output error."""

import itertools

import pytest
import torch

from taskptq.core.code_grid import UniformCodes
from taskptq.reconstruction.rounding.descent import descend

ONE = torch.ones(1, 1)


def output_error(codes, target, hessian, grid):
    error = target - grid.values(codes)
    return ((error @ hessian) * error).sum(dim=2)


@pytest.fixture
def problem():
    """Two groups of three rows with correlated inputs."""
    x = torch.randn(2, 5, 40, dtype=torch.float64)
    x[:, 1:] += 2 * x[:, :1]
    target = torch.randn(2, 3, 5, dtype=torch.float64)
    grid = UniformCodes(
        scale=0.4 + torch.rand(2, 3),
        zero_point=torch.full((2, 3), 3),
        bounds=(0, 7),
    )
    return grid.nearest(target), target, x @ x.transpose(1, 2), grid


def test_each_sweep_lowers_the_output_error(problem):
    codes, target, hessian, grid = problem
    errors = [output_error(codes, target, hessian, grid)]
    for sweeps in (1, 2, 8):
        moved = descend(codes, target, hessian, grid=grid, sweeps=sweeps)
        assert moved.dtype == torch.int32
        assert 0 <= int(moved.min()) <= int(moved.max()) <= 7
        errors.append(output_error(moved, target, hessian, grid))
    for before, after in itertools.pairwise(errors):
        assert bool((after <= before + 1e-9).all())
    assert float(errors[-1].sum()) < 0.9 * float(errors[0].sum())


def test_no_single_move_is_left(problem):
    codes, target, hessian, grid = problem
    moved = descend(codes, target, hessian, grid=grid, sweeps=99)
    least = output_error(moved, target, hessian, grid)
    for column, step in itertools.product(range(5), (-1, 1)):
        other = moved.clone()
        other[..., column] = (other[..., column] + step).clamp(0, 7)
        error = output_error(other, target, hessian, grid)
        assert bool((error >= least - 1e-9).all())


def test_independent_inputs_leave_nearest_codes():
    target = torch.tensor([[[0.4, 1.6, -3.0, 9.0]]])
    nearest = torch.tensor([[[0, 2, 0, 3]]], dtype=torch.int32)
    moved = descend(
        torch.zeros_like(nearest),
        target,
        torch.eye(4)[None],
        grid=UniformCodes(scale=ONE, zero_point=0 * ONE, bounds=(0, 3)),
        sweeps=1,
    )
    assert torch.equal(moved, nearest)
