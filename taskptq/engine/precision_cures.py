"""Other grids for points that hurt, before any of them gets more bits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from taskptq.analysis.mixed_precision.overrides import (
    ChangedPoints,
    exact_pattern,
    with_settings,
)
from taskptq.analysis.mixed_precision.units import Bits, Key
from taskptq.analysis.mixed_precision.verify import Measured, Reference
from taskptq.analysis.sensitivity.roles import owner_of, point_of
from taskptq.core import AffineQuantizer
from taskptq.core.switches import quantizers
from taskptq.engine.precision_problem import Calibrated
from taskptq.engine.recipe import Recipe

__all__ = ['Cured', 'cure']

logger = logging.getLogger('taskptq')

# A cure stays if it leaves at most this share of the output loss: what takes
# operations at run time has to be worth them.
MOST_LEFT = 0.5
# Grids with more bits were raised on purpose.
MOST_BITS = 8


@dataclass(frozen=True, kw_only=True)
class Cured:
    """What came of the cures.

    Args:
        recipe: With the overrides of the cures that stay.
        measured: The model with them.
        overrides: What they added to the recipe's ``overrides``.
        tried: Every cure: ``settings``, ``loss_before``, ``loss_after``,
            ``points`` and whether it is ``kept``; plain types.
    """

    recipe: Recipe
    measured: Measured
    overrides: Sequence[Mapping[str, Any]] = ()
    tried: Sequence[Mapping[str, Any]] = ()


def cure(
    calibrated: Calibrated,
    reference: Reference,
    *,
    recipe: Recipe,
    named: Measured,
    allowed: float,
) -> Cured:
    """Try the recipe's ``mixed_precision.cures``, in place, in their order.

    A cure replaces the settings of points, such as ``dict(softmax=...)``, in
    all layers whose grids are uniform with at most 8 bits. It stays if at
    most half of the output loss is left.

    Args:
        calibrated: Model and data.
        reference: Float outputs to compare with.
        recipe: The recipe.
        named: The model as the recipe made it.
        allowed: Output loss that needs no cure.
    """
    assert recipe.mixed_precision is not None
    cured = Cured(recipe=recipe, measured=named)
    for settings in recipe.mixed_precision.cures:
        keys = _uniform_points(calibrated.model, settings)
        if not keys or cured.measured.loss <= allowed:
            continue
        overrides = [
            {
                'pattern': exact_pattern(layer),
                **{
                    point: dict(settings[point])
                    for owner, point in keys
                    if owner == layer
                },
            }
            for layer in dict.fromkeys(layer for layer, _ in keys)
        ]
        cured = _tried(
            cured,
            calibrated,
            reference,
            settings=settings,
            keys=keys,
            overrides=overrides,
        )
    return cured


def _uniform_points(
    model: nn.Module, settings: Mapping[str, Any]
) -> dict[Key, Bits]:
    """Return the points that a cure is for, and their bits."""
    return {
        (owner_of(name), point_of(name)): quantizer.spec.num_bits
        for name, quantizer in quantizers(model)
        if point_of(name) in settings
        and isinstance(quantizer, AffineQuantizer)
        and quantizer.calibrated
        and quantizer.spec.num_bits <= MOST_BITS
    }


def _tried(
    cured: Cured,
    calibrated: Calibrated,
    reference: Reference,
    *,
    settings: Mapping[str, Any],
    keys: Mapping[Key, Bits],
    overrides: Sequence[Mapping[str, Any]],
) -> Cured:
    """Apply and measure one cure; undo it if it gains too little."""
    qconfig = with_settings(
        cured.recipe.qconfig, {'overrides': list(overrides)}
    )
    changed = ChangedPoints(
        calibrated.model, qconfig, changed=keys, edges=calibrated.edges
    )
    changed.calibrate(calibrated.batches, forward=calibrated.forward)
    measured = reference.measure(calibrated.model)
    before = cured.measured.loss
    kept = measured.loss <= MOST_LEFT * before
    record = {
        'settings': {point: dict(one) for point, one in settings.items()},
        'points': len(keys),
        'loss_before': before,
        'loss_after': measured.loss,
        'kept': kept,
    }
    if not kept:
        changed.undo()
        return replace(cured, tried=[*cured.tried, record])
    return Cured(
        recipe=replace(cured.recipe, qconfig=qconfig),
        measured=measured,
        overrides=[*cured.overrides, *overrides],
        tried=[*cured.tried, record],
    )
