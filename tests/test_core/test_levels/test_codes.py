"""Levels as GPTQ and its kin see them."""

import pytest
import torch

from taskptq.core.levels import LEVELS
from taskptq.core.levels.codes import LevelCodes
from taskptq.core.levels.levels import fit
from taskptq.reconstruction.rounding.column_solver import ColumnSolver
from taskptq.reconstruction.rounding.descent import descend
from taskptq.reconstruction.rounding.output_ranges import search_output_range

GROUPS, ROWS, INPUTS = 2, 4, 24


@pytest.fixture(params=['binary', 'ternary', 'two-plane', 'dual', 'mid-rise'])
def grid(request, weight):
    kind = LEVELS[request.param]()
    found = fit(kind, weight.flatten(0, 1))
    return LevelCodes(kind=kind, coefficients=found.reshape(GROUPS, ROWS, -1))


@pytest.fixture
def weight():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(GROUPS, ROWS, INPUTS, generator=generator)


@pytest.fixture
def hessian():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(GROUPS, INPUTS, 60, generator=generator)
    x[:, 1:] += 1.5 * x[:, :-1]
    return (x @ x.mT).double()


def output_error(codes, weight, hessian, grid):
    error = weight.double() - grid.double().values(codes)
    return ((error @ hessian) * error).sum(dim=2)


def test_codes_and_values(grid, weight):
    codes = grid.nearest(weight)
    assert torch.equal(grid.nearest(grid.values(codes)), codes)
    column = grid.nearest(weight[..., 3])
    assert torch.equal(column, codes[..., 3])
    assert torch.equal(grid.values(column), grid.values(codes)[..., 3])


def test_solved_codes_beat_nearest_ones(grid, weight, hessian):
    codes = ColumnSolver(hessian).codes(weight, grid=grid)
    assert int(codes.min()) >= 0
    assert int(codes.max()) < grid.kind.num_levels
    solved = output_error(codes, weight, hessian, grid).sum()
    nearest = output_error(grid.nearest(weight), weight, hessian, grid).sum()
    assert float(solved) < 0.95 * float(nearest)


def test_independent_inputs_give_nearest_levels(grid, weight):
    eye = torch.eye(INPUTS).expand(GROUPS, -1, -1)
    codes = ColumnSolver(eye).codes(weight, grid=grid)
    assert torch.equal(codes, grid.nearest(weight).int())


def test_descent_never_raises_the_error(grid, weight, hessian):
    start = ColumnSolver(hessian).codes(weight, grid=grid)
    moved = descend(start, weight, hessian, grid=grid, sweeps=4)
    before = output_error(start, weight, hessian, grid)
    after = output_error(moved, weight, hessian, grid)
    assert bool((after <= before + 1e-9).all())
    assert float(after.sum()) < float(before.sum())


def test_search_lowers_the_output_error(grid, weight, hessian):
    solver = ColumnSolver(hessian)

    def to_codes(w, g):
        return solver.codes(w, grid=g)

    found = search_output_range(weight, hessian, grid, to_codes=to_codes)
    before = output_error(to_codes(weight, grid), weight, hessian, grid)
    after = output_error(to_codes(weight, found), weight, hessian, found)
    assert bool((after <= before * (1 + 1e-5)).all())
    assert float(after.sum()) < float(before.sum())
    assert not list(grid.kind.faults(found.coefficients.flatten(0, 1)))


def test_one_grid_for_all_rows(weight, hessian):
    kind = LEVELS['ternary']()
    one = fit(kind, weight.reshape(1, -1)).reshape(1, 1, -1)
    grid = LevelCodes(kind=kind, coefficients=one)
    found = search_output_range(weight, hessian, grid)
    assert found.shape == (1, 1)
    codes = grid.nearest(weight)
    before = output_error(codes, weight, hessian, grid).sum()
    after = output_error(found.nearest(weight), weight, hessian, found).sum()
    assert float(after) < float(before)


def test_rows_are_replaced_one_range_at_a_time(grid):
    part = grid.rows(slice(1, 3)).scaled(2.0)
    whole = grid.put(slice(1, 3), part)
    assert torch.equal(whole.levels[:, 1:3], grid.levels[:, 1:3] * 2)
    assert torch.equal(whole.levels[:, 0], grid.levels[:, 0])


def test_cheaper_codes_go_towards_zero():
    kind = LEVELS['ternary']()
    grid = LevelCodes(kind=kind, coefficients=torch.ones(1, 1, 1))
    codes = torch.tensor([[2.0]])
    given = {'cost': torch.ones(1, 1), 'prices': torch.tensor([1.0, 0.0, 1.0])}
    # A level is a step: 0.45^2 + 1 against 0.55^2, 0.05^2 + 1 against 1.05^2
    near = grid.cheaper(codes, torch.tensor([[0.55]]), **given)
    far = grid.cheaper(codes, torch.tensor([[1.05]]), **given)
    assert (near.item(), far.item()) == (1.0, 2.0)
    free = {**given, 'prices': torch.zeros(3)}
    assert grid.cheaper(codes, torch.tensor([[0.55]]), **free).item() == 2
