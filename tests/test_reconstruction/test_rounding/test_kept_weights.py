import pytest
import torch

from taskptq.core import AffineQuantizer, MinMaxObserver, QuantSpec
from taskptq.reconstruction.rounding.column_solver import ColumnSolver
from taskptq.reconstruction.rounding.descent import descend
from taskptq.reconstruction.rounding.kept_weights import (
    damped_moments,
    fit_kept,
)


def problem(share, *, groups=2, rows=3, inputs=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(groups, inputs, 200, generator=generator).double()
    x[:, 1:] += 0.8 * x[:, :-1]
    hessian = x @ x.transpose(1, 2) / 200
    weight = torch.randn(groups, rows, inputs, generator=generator).double()
    mask = torch.rand(weight.shape, generator=generator) < share
    return x, hessian, weight, mask


@pytest.mark.parametrize('share', [0.2, 0.5, 0.8, 1.0])
def test_agrees_with_least_squares_of_each_row(share):
    x, hessian, weight, mask = problem(share)
    found = fit_kept(weight, hessian, mask)
    assert (found[~mask] == 0).all()
    for group in range(len(weight)):
        for row in range(weight.shape[1]):
            kept = mask[group, row]
            solved = torch.linalg.lstsq(
                x[group, kept].T, (weight[group, row] @ x[group])[:, None]
            ).solution[:, 0]
            torch.testing.assert_close(found[group, row, kept], solved)


def test_an_empty_row_stays_zero():
    _, hessian, weight, mask = problem(0.5)
    mask[0, 1] = False
    found = fit_kept(weight, hessian, mask)
    assert (found[0, 1] == 0).all()
    assert found.isfinite().all()


def test_inputs_that_never_vary_can_be_factorised():
    hessian = torch.zeros(1, 4, 4, dtype=torch.float64)
    hessian[0, 0, 0] = 2.0
    damped = damped_moments(hessian, damping=0.01)
    torch.linalg.cholesky(damped)
    torch.testing.assert_close(damped[0, 1, 1].item(), 0.005)


def grid(weight):
    spec = QuantSpec(num_bits=3, symmetric=False, ch_axis=0)
    quantizer = AffineQuantizer(spec, observer=MinMaxObserver(spec))
    quantizer.observer.observe(weight.flatten(0, 1).float())
    quantizer.calibrate()
    return quantizer.code_grid((weight.shape[0], weight.shape[1]))


@pytest.mark.parametrize('sweeps', [0, 3])
def test_solved_codes_leave_zeros_alone(sweeps):
    """Their errors go to the weights that remain."""
    _, hessian, weight, mask = problem(0.5)
    codes_of = grid(weight)
    scale, zero_point = codes_of.scale, codes_of.zero_point
    codes = ColumnSolver(hessian).codes(weight, grid=codes_of, mask=mask)
    if sweeps:
        codes = descend(
            codes,
            weight,
            hessian,
            grid=codes_of,
            sweeps=sweeps,
            mask=mask,
        )
    zeros = zero_point[..., None].expand_as(codes)
    assert torch.equal(codes[~mask], zeros[~mask])
    nearest = ((weight * mask) / scale[..., None]).round() + zeros

    def error(codes):
        e = weight - scale[..., None] * (codes.clamp(*codes_of.bounds) - zeros)
        return float((e @ hessian * e).sum())

    assert error(codes) < error(nearest)
