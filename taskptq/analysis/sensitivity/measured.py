"""Losses measured with forward passes: point by point, and role by role."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from taskptq.analysis.sensitivity.gradient import CANDIDATES, SURVEYED
from taskptq.analysis.sensitivity.grids import Rounder, check_candidates
from taskptq.analysis.sensitivity.meter import Meter
from taskptq.analysis.sensitivity.points import (
    head_batches,
    small_batches,
    view_points,
)
from taskptq.analysis.sensitivity.record import (
    PointSensitivity,
    RoleSensitivity,
    SensitivityReport,
)
from taskptq.analysis.sensitivity.state import MeasuredState
from taskptq.core.switches import quantizers

__all__ = ['MEASURED', 'measure_losses', 'measure_roles', 'roles_of']

# Estimators of this module.
MEASURED = ('alone', 'leave-out')
IMAGES_AT_ONCE = 4

Advance = Callable[[int], object]


def measure_losses(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    forward: Callable[[nn.Module, Any], Any],
    adapter: Any,
    candidates: Sequence[int] = CANDIDATES,
    estimator: str = 'alone',
    num_images: int = SURVEYED,
    names: Collection[str] | None = None,
    state: MeasuredState | None = None,
    advance: Advance | None = None,
) -> SensitivityReport:
    """Measure the output loss of each tensor with forward passes only.

    'alone' quantizes one tensor at a time, at each candidate bit width;
    'leave-out' quantizes all and leaves one float at a time, at the present
    bits. Needs no gradient, but a pass over the images for each number.

    Args:
        model: Prepared and calibrated, not frozen.
        batches: Collated batches; the first images are used.
        forward: Runs the model on one batch.
        adapter: The model's adapter.
        candidates: Bits; those of each quantizer are added.
        estimator: 'alone' or 'leave-out'.
        num_images: Images to measure on.
        names: Quantizers to measure; None is all.
        state: Numbers of an interrupted run; receives new ones.
        advance: Called with 1 after each tensor.

    Raises:
        ValueError: If the estimator is unknown, there is no batch, or a
            candidate is impossible.
    """
    if estimator not in MEASURED:
        raise ValueError(
            f'estimator={estimator!r}: choose one of {", ".join(MEASURED)}'
        )
    if not batches:
        raise ValueError('there is no batch: give at least one')
    start = time.perf_counter()
    wanted = check_candidates(candidates)
    state = state or MeasuredState()
    few = head_batches(
        small_batches(batches, size=IMAGES_AT_ONCE), num_images=num_images
    )
    view = view_points(model, few, forward=forward, adapter=adapter)
    meter = Meter(model, few, adapter=adapter)
    total = state.get('all', partial(meter.measure, meter.names))
    losses = {}
    for name in view.facts if names is None else names:
        if name not in view.seen:
            continue
        losses[name] = (
            _alone(meter, name, view.grids(name, candidates=wanted), state)
            if estimator == 'alone'
            else _left_out(meter, name, total, state)
        )
        if advance is not None:
            advance(1)
    return SensitivityReport(
        points=view.points(losses),
        estimator=estimator,
        num_images=meter.num_images,
        seconds=time.perf_counter() - start,
        total=total,
    )


def _alone(
    meter: Meter,
    name: str,
    grids: Mapping[int, Rounder],
    state: MeasuredState,
) -> dict[int, float]:
    """Return the loss at each bit width with one tensor quantized."""
    return {
        bits: state.get(
            f'alone {name} {bits}',
            partial(meter.measure, [name], rounders={name: rounded}),
        )
        for bits, rounded in grids.items()
    }


def _left_out(
    meter: Meter, name: str, total: float, state: MeasuredState
) -> dict[int, float]:
    """Return what comes back with one tensor float, at least 0."""
    rest = state.get(
        f'all but {name}', partial(meter.measure, meter.all_but([name]))
    )
    bits = next(
        one.spec.num_bits for n, one in quantizers(meter.model) if n == name
    )
    return {bits: max(0.0, total - rest)}


def roles_of(
    points: Sequence[PointSensitivity],
) -> dict[str, list[PointSensitivity]]:
    """Group points by role, and activations by what produced them as well.

    A group that holds the same points as one before is left out.
    """
    groups: dict[str, list[PointSensitivity]] = {}
    for point in points:
        groups.setdefault(point.role, []).append(point)
    for point in points:
        if point.point == 'activation' and point.producer:
            groups.setdefault(f'after {point.producer}', []).append(point)
    kept: dict[str, list[PointSensitivity]] = {}
    for role, members in groups.items():
        if members not in kept.values():
            kept[role] = members
    return kept


def measure_roles(
    meter: Meter,
    points: Sequence[PointSensitivity],
    *,
    state: MeasuredState | None = None,
    advance: Advance | None = None,
) -> tuple[float, tuple[RoleSensitivity, ...]]:
    """Measure what each role costs alone, and what it could give back.

    Args:
        meter: Model and images.
        points: Its points.
        state: Numbers of an interrupted run; receives new ones.
        advance: Called with 1 after each role.

    Returns:
        The loss with everything quantized, and the roles, those first that
        give back most.
    """
    state = state or MeasuredState()
    total = state.get('all', partial(meter.measure, meter.names))
    found = list(_roles(meter, roles_of(points), state, advance))
    return total, tuple(sorted(found, key=lambda role: role.others))


def _roles(
    meter: Meter,
    groups: dict[str, list[PointSensitivity]],
    state: MeasuredState,
    advance: Advance | None,
) -> Iterator[RoleSensitivity]:
    for role, members in groups.items():
        names = frozenset(point.name for point in members)
        yield RoleSensitivity(
            role=role,
            num_points=len(members),
            macs=sum(point.macs for point in members),
            alone=state.get(f'role {role}', partial(meter.measure, names)),
            others=state.get(
                f'all but role {role}',
                partial(meter.measure, meter.all_but(names)),
            ),
        )
        if advance is not None:
            advance(1)
