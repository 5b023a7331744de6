"""Grids as roundings with second moments see them."""

import pytest
import torch

from taskptq.core import AffineQuantizer, MinMaxObserver, QuantSpec
from taskptq.core.code_grid import UniformCodes, of_rows


@pytest.fixture
def weight():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 10, generator=generator)


@pytest.fixture(params=[True, False])
def quantizer(request, weight):
    spec = QuantSpec(num_bits=3, symmetric=request.param, ch_axis=0)
    made = AffineQuantizer(spec, observer=MinMaxObserver(spec))
    made.calibrate_weight(weight.flatten(0, 1))
    return made


def test_codes_are_those_of_the_quantizer(quantizer, weight):
    grid = quantizer.code_grid((2, 3))
    codes = quantizer.quantize(weight.flatten(0, 1)).view_as(weight)
    assert torch.equal(grid.nearest(weight), codes.float())
    values = quantizer.dequantize(codes.flatten(0, 1)).view_as(weight)
    assert torch.equal(grid.values(codes), values)
    assert torch.equal(grid.nearest(weight[..., 2]), codes[..., 2].float())
    zeros = grid.values(grid.zeros(codes[..., 0]))
    assert zeros.eq(0).all()


def test_a_changed_grid_goes_back(quantizer):
    before = quantizer.scale.clone()
    grid = quantizer.code_grid((2, 3))
    part = grid.rows(slice(1, 2)).scaled(2.0)
    quantizer.set_code_grid(grid.put(slice(1, 2), part))
    changed = (quantizer.scale / before).view(2, 3)
    assert changed.tolist() == [[1.0, 2.0, 1.0]] * 2


def test_one_grid_of_all_rows_stays_one(weight):
    spec = QuantSpec(num_bits=3)
    made = AffineQuantizer(spec, observer=MinMaxObserver(spec))
    made.calibrate_weight(weight)
    grid = made.code_grid((2, 3))
    assert grid.shape == (1, 1)
    assert grid.rows(slice(0, 2)) is grid
    assert grid.expanded((2, 3)).shape == (2, 3)


def test_moves_are_rounded_newton_steps():
    grid = UniformCodes(
        scale=torch.full((1, 1), 0.5),
        zero_point=torch.zeros(1, 1),
        bounds=(0, 3),
    )
    codes = torch.tensor([[1.0, 1.0, 3.0]])
    gradient = torch.tensor([[0.6, 0.2, 9.0]])
    moved = grid.moved(codes, gradient, torch.ones(1, 1))
    assert moved.tolist() == [[2, 1, 3]]
    assert grid.change(codes, moved).tolist() == [[0.5, 0, 0]]


def test_cheaper_codes_are_nearer_to_zero():
    grid = UniformCodes(
        scale=torch.ones(1, 1), zero_point=torch.zeros(1, 1), bounds=(-2, 1)
    )
    prices = torch.tensor([2.0, 1.0, 0.0, 1.0])
    weight = torch.tensor([[0.6, 1.4, -1.6, -1.9]])
    found = grid.cheaper(
        grid.nearest(weight), weight, cost=torch.ones(1, 1), prices=prices
    )
    assert found.tolist() == [[0, 1, -1, -1]]


def test_candidates_shrink_the_range_then_move_each_end(quantizer, weight):
    grid = quantizer.code_grid((2, 3))
    hessian = torch.eye(10).expand(2, -1, -1)
    assert grid.searches == (1 if quantizer.spec.symmetric else 3)
    sizes = [len(grid.candidates(i, weight, hessian, weight)) for i in (0, 1)]
    assert sizes == [13, 5]
    widest = grid.candidates(0, weight, hessian, weight)[0]
    torch.testing.assert_close(widest.scale, grid.scale)


def test_values_of_rows():
    part = torch.ones(2, 3)
    assert of_rows(part, torch.ones(2, 3)).shape == (2, 3)
    assert of_rows(part, torch.ones(2, 3, 4)).shape == (2, 3, 1)
