"""Estimators against figures worked out by hand."""

import torch

from taskptq.core.levels.estimators import (
    ESTIMATORS,
    clipped,
    identity,
    polynomial,
)

X = torch.tensor([[-1.5, -1.0, -0.5, 0.0, 0.25, 0.5, 1.0, 1.2]])
UNIT = torch.tensor([[-1.0, 1.0]])


def test_identity_passes_everything():
    assert identity(X, UNIT).eq(1).all()


def test_clipped_passes_up_to_the_outermost_levels():
    assert clipped(X, UNIT).tolist() == [[0, 1, 1, 1, 1, 1, 1, 0]]
    assert clipped(X, UNIT / 2).tolist() == [[0, 0, 1, 1, 1, 1, 0, 0]]


def test_clipped_can_have_a_fixed_window():
    assert clipped(X, UNIT / 9, limit=1.0).tolist() == [
        [0, 1, 1, 1, 1, 1, 1, 0]
    ]


def test_clipped_of_unsigned_levels_ends_at_zero():
    # softmax(2, 1, 0, 0), levels {0, 0.5}
    attention = torch.tensor([[2.0, 1.0, 0.0, 0.0]]).softmax(dim=1)
    levels = torch.tensor([[0.0, 0.5]])
    assert clipped(attention, levels).tolist() == [[0, 1, 1, 1]]
    assert clipped(-attention, levels).eq(0).all()


def test_polynomial_is_the_slope_of_a_parabola():
    expected = [[0, 0, 1, 2, 1.5, 1, 0, 0]]
    assert polynomial(X, UNIT).tolist() == expected
    # Its integral from the left end is the smoothed sign
    fine = torch.linspace(-1.5, 1.2, 27001, dtype=torch.float64)[None]
    slope = polynomial(fine, UNIT.double())
    smooth = torch.cumulative_trapezoid(slope[0], fine[0]) - 1
    places = ((X.double() + 1.5) / 1e-4).round().long().flatten()[1:]
    torch.testing.assert_close(
        smooth[places - 1],
        torch.tensor([-1, -0.75, 0, 0.4375, 0.75, 1, 1]).double(),
        atol=1e-6,
        rtol=0,
    )


def test_polynomial_stretches_with_the_level():
    assert torch.equal(polynomial(X * 3, UNIT * 3), polynomial(X, UNIT))


def test_every_estimator_bears_levels_of_zero():
    for estimator in ESTIMATORS.values():
        assert estimator(X, UNIT * 0).isfinite().all()
