"""The task's own metric, for roles and for the worst tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from taskptq.analysis.sensitivity.measured import roles_of
from taskptq.analysis.sensitivity.meter import only
from taskptq.analysis.sensitivity.record import (
    PointSensitivity,
    SensitivityReport,
)
from taskptq.analysis.sensitivity.state import MeasuredState
from taskptq.core.switches import quantizers

__all__ = ['MOST_POINTS', 'add_metric', 'num_evaluations']

Evaluate = Callable[[], float]
# Points whose metric is measured, the worst ones: each is an evaluation.
MOST_POINTS = 10


def num_evaluations(
    points: Sequence[PointSensitivity], *, most: int = MOST_POINTS
) -> int:
    """Return how many evaluations :func:`add_metric` makes."""
    return 2 + len(roles_of(points)) + min(most, len(points))


def add_metric(
    model: nn.Module,
    report: SensitivityReport,
    *,
    evaluate: Evaluate,
    state: MeasuredState,
    most: int = MOST_POINTS,
    advance: Callable[[int], object] | None = None,
) -> SensitivityReport:
    """Return a report with the task's metric, of which only numbers are known.

    It is measured for the float and for the quantized model, with each role
    left float, and with each of the worst tensors left float (or, with the
    estimator 'alone', with only that one quantized).

    Args:
        model: Prepared and calibrated.
        report: With points, and with roles if those are to get it.
        evaluate: Evaluates the model with its present switches.
        state: Numbers of an interrupted run; receives new ones.
        most: Worst points to evaluate.
        advance: Called with 1 after each evaluation.
    """
    everything = frozenset(n for n, one in quantizers(model) if one.calibrated)

    def measured(key: str, on: frozenset[str]) -> float:
        value = state.get(
            f'metric {key}', partial(_evaluated, model, on, evaluate)
        )
        if advance is not None:
            advance(1)
        return value

    # First the float model, which certainly predicts something.
    of_float = measured('of none', frozenset())
    report = replace(
        report,
        metric='metric',
        metric_float=of_float,
        metric_quant=measured('of all', everything),
    )
    alone = report.estimator == 'alone'
    points: dict[str, float] = {}
    for point in report.sorted()[:most]:
        one = frozenset([point.name])
        key = f'{"only" if alone else "all but"} {point.name}'
        points[point.name] = measured(key, one if alone else everything - one)
    roles: dict[str, float] = {}
    for role, members in roles_of(report.points).items():
        rest = everything - {point.name for point in members}
        if any(one.role == role for one in report.roles):
            roles[role] = measured(f'all but role {role}', rest)
    return replace(
        report,
        points=tuple(
            replace(one, metric=points.get(one.name)) for one in report.points
        ),
        roles=tuple(
            replace(one, metric=roles.get(one.role)) for one in report.roles
        ),
    )


def _evaluated(
    model: nn.Module, names: frozenset[str], evaluate: Evaluate
) -> float:
    with only(model, names):
        return evaluate()
