"""One solver for many grids; whole roundings are tested in test_gptq."""

import pytest
import torch

from taskptq.core.code_grid import UniformCodes
from taskptq.reconstruction.rounding.column_solver import ColumnSolver


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 12, 50, generator=generator)
    x[:, 1:] += 2 * x[:, :-1]
    return torch.randn(1, 5, 12, generator=generator), x @ x.mT


def grid_of(step):
    return UniformCodes(
        scale=torch.full((1, 5), step),
        zero_point=torch.zeros(1, 5),
        bounds=(-4, 3),
    )


def test_a_solver_serves_grids_in_any_order(problem):
    weight, hessian = problem
    solver = ColumnSolver(hessian)
    first = solver.codes(weight, grid=grid_of(0.3))
    solver.codes(weight, grid=grid_of(0.7))
    assert torch.equal(solver.codes(weight, grid=grid_of(0.3)), first)
    assert torch.equal(
        ColumnSolver(hessian).codes(weight, grid=grid_of(0.3)), first
    )


def test_blocks_do_not_change_codes(problem):
    weight, hessian = problem
    whole = ColumnSolver(hessian).codes(weight, grid=grid_of(0.5))
    small = ColumnSolver(hessian, block_size=5)
    assert torch.equal(small.codes(weight, grid=grid_of(0.5)), whole)


def test_prices_move_codes_towards_zero(problem):
    weight, hessian = problem
    solver = ColumnSolver(hessian)
    free = solver.codes(weight, grid=grid_of(0.5))
    prices = torch.arange(-4.0, 4.0).abs() * 0.5
    priced = solver.codes(weight, grid=grid_of(0.5), prices=prices)
    assert float(priced.abs().float().mean()) < float(
        free.abs().float().mean()
    )
