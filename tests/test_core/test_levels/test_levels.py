"""Promises that every kind of grid keeps."""

import pytest
import torch

from taskptq.core.levels import LEVELS, Levels
from taskptq.core.levels.levels import (
    as_rows,
    fit,
    from_rows,
    nearest_level,
    solve,
    thresholds,
)


@pytest.fixture(params=sorted(LEVELS))
def kind(request) -> Levels:
    return LEVELS[request.param]()


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 300, generator=generator).abs_().pow(1.3) * (
        torch.rand(6, 300, generator=generator) - 0.4
    )


def test_levels_ascend_and_every_threshold_is_a_midpoint(kind, rows):
    levels, order = kind.ordered(fit(kind, rows))
    assert bool((levels.diff(dim=1) >= 0).all())
    middles = thresholds(levels)
    for i in range(middles.shape[1]):
        just_below = nearest_level(middles[:, i : i + 1] - 1e-4, levels)
        just_above = nearest_level(middles[:, i : i + 1] + 1e-4, levels)
        assert bool((just_below == i).all())
        assert bool((just_above == i + 1).all())
    assert torch.equal(
        order.sort(dim=1).values[0], torch.arange(len(kind.basis))
    )


def test_nearest_level_is_the_nearest(kind, rows):
    levels, _ = kind.ordered(fit(kind, rows))
    distances = (rows[..., None] - levels[:, None]).abs()
    codes = nearest_level(rows, levels)
    chosen = distances.gather(2, codes[..., None])[..., 0]
    torch.testing.assert_close(chosen, distances.amin(dim=2))


def test_fit_is_at_least_as_good_as_its_starts_and_as_coefficients_nearby(
    kind, rows
):
    def error(coefficients):
        levels, _ = kind.ordered(kind.repaired(coefficients))
        codes = nearest_level(rows, levels)
        return (rows - levels.gather(1, codes)).square().sum(dim=1)

    found = fit(kind, rows)
    least = error(found)
    others = kind.starts(rows)
    for column in range(kind.num_coefficients):
        step = torch.zeros_like(found)
        step[:, column] = 0.003 * found.abs().amax(dim=1)
        others += [found + step, found - step]
    for other in others:
        assert bool((least <= error(other) * 1.02).all())


def test_fit_scales_with_the_weights(kind, rows):
    torch.testing.assert_close(fit(kind, rows * 8), fit(kind, rows) * 8)


def test_fitted_coefficients_are_valid(kind, rows):
    for some in (rows, torch.zeros_like(rows), torch.full_like(rows, 0.2)):
        found = fit(kind, some)
        assert bool(found.isfinite().all())
        assert not list(kind.faults(found))


def test_invalid_coefficients_have_a_fault(kind):
    zeros = torch.zeros(2, kind.num_coefficients)
    assert list(kind.faults(zeros))


def test_solve_minimizes_the_output_error(kind, rows):
    """No coefficients nearby are better with the same codes."""
    x = torch.randn(
        300,
        40,
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(2),
    )
    hessian = x @ x.T + torch.eye(300, dtype=torch.float64)
    start = fit(kind, rows).double()
    levels, order = kind.ordered(start)
    codes = nearest_level(rows.double(), levels)
    member = torch.nn.functional.one_hot(codes, kind.num_levels).double()
    found = solve(
        kind,
        order,
        member.mT @ hessian @ member,
        (rows.double()[:, None] @ hessian @ member)[:, 0],
        before=start,
    )

    def error(coefficients):
        values = (kind.matrix(start)[order] @ coefficients[..., None])[..., 0]
        rest = rows.double() - values.gather(1, codes)
        return ((rest @ hessian) * rest).sum(dim=1)

    least = error(found)
    for column in range(kind.num_coefficients):
        step = torch.zeros_like(found)
        step[:, column] = 1e-3
        for other in (found + step, found - step):
            assert bool((least <= error(other) * (1 + 1e-6)).all())


@pytest.mark.parametrize('ch_axis', [None, 0, 1])
def test_rows_and_back(ch_axis):
    x = torch.randn(3, 4, 2, 2)
    rows = as_rows(x, ch_axis=ch_axis)
    assert rows.shape[0] == (1 if ch_axis is None else x.shape[ch_axis])
    assert torch.equal(from_rows(rows, like=x, ch_axis=ch_axis), x)


def test_a_subclass_is_known_by_its_name_at_once():
    class Five(Levels):
        name = 'five'
        basis = tuple((float(i),) for i in range(-2, 3))

        def starts(self, rows):
            return [rows.abs().mean(dim=1, keepdim=True)]

    try:
        assert LEVELS['five'] is Five
        assert Five().num_bits == 3
        assert Five().has_zero
        found = fit(Five(), torch.arange(-2.0, 3.0)[None] * 0.7)
        torch.testing.assert_close(found, torch.tensor([[0.7]]))
    finally:
        del LEVELS['five']
