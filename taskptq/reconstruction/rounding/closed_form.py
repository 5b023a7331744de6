"""Closed-form steps of one unit, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from taskptq.core.distributed import gathered
from taskptq.modules.base import QuantModule
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.position_weights import PositionWeights
from taskptq.reconstruction.rounding.gptq import HessianAccumulator, gptq_layer
from taskptq.reconstruction.rounding.layer_fit import (
    correct_bias,
    fit_float,
    fit_layer,
)
from taskptq.reconstruction.rounding.layer_inputs import (
    by_rows,
    listening,
    matmul_of,
)
from taskptq.reconstruction.rounding.learned import UnitResult
from taskptq.reconstruction.rounding.moments import (
    Moments,
    PairedMoments,
    collect,
)


def round_unit(
    unit: Unit,
    data: UnitData,
    config: ReconstructionConfig,
    *,
    weights: PositionWeights | None = None,
) -> UnitResult:
    """Fit each weight of a unit in closed form, in definition order.

    The unit runs on its cached inputs once per layer, so that every layer
    sees the outputs of the layers already rounded.

    Args:
        unit: Calibrated unit.
        data: Its inputs.
        config: Settings. GPTQ alone rounds; ``match_float``,
            ``output_ranges`` and ``bias_correction`` do what they say.
        weights: Weights of the positions of each layer's output.
    """
    result = UnitResult(name=unit.name, steps=0)
    for name, layer in unit.layers():
        slots = ready_slots(layer)
        if not slots:
            continue
        try:
            if config.reads_both_models:
                found = collect(
                    layer, unit, data, weights=_of_layer(weights, name)
                )
                _fit(layer, slots, found, config)
            else:
                _round(layer, slots, data, config)
        except ValueError as error:
            raise ValueError(f'{name}.{error}') from error
    return result


def _of_layer(
    weights: PositionWeights | None, name: str
) -> Callable[[int, int], Tensor | None] | None:
    return None if weights is None else partial(weights.of, name)


def correct_biases(
    unit: Unit, data: UnitData, *, weights: PositionWeights | None = None
) -> None:
    """Correct the biases of a rounded unit, in definition order.

    Args:
        unit: The unit.
        data: Its inputs.
        weights: See :func:`round_unit`.
    """
    for name, layer in unit.layers():
        slots = ready_slots(layer)
        if not any(layer.bias_of(slot) is not None for slot in slots):
            continue
        found = collect(layer, unit, data, weights=_of_layer(weights, name))
        for slot in slots:
            rows = by_rows(found, layer, slot)
            if rows:
                plain = [(r, m.moments(centred=False)) for r, m in rows]
                correct_bias(layer, slot, plain)


def ready_slots(layer: QuantModule) -> list[str]:
    """Return the weights of a layer that can be fitted.

    They have a calibrated grid, or are float ones of a sparse model.
    """
    if not layer.closed_form:
        return []
    return [
        parameter
        for parameter, _ in layer.active_slots()
        if layer.weight_values_of(parameter) is not None
    ]


def _fit(
    layer: QuantModule,
    slots: list[str],
    found: dict[str, PairedMoments],
    config: ReconstructionConfig,
) -> None:
    """Fit a layer by the moments of its inputs in both models."""
    for slot in slots:
        has_bias = layer.bias_of(slot) is not None
        rows: list[tuple[slice, Moments]] = [
            (r, sums.moments(centred=config.bias_correction and has_bias))
            for r, sums in by_rows(found, layer, slot)
        ]
        if not rows:  # never called: stays rounded to nearest
            continue
        try:
            fit_layer(layer, slot, rows, config)
        except ValueError as error:
            raise ValueError(f'{slot}: {error}') from error


def _round(
    layer: QuantModule,
    slots: list[str],
    data: UnitData,
    config: ReconstructionConfig,
) -> None:
    """Round a layer by GPTQ, on the inputs of the quantized model."""
    moments: dict[str, HessianAccumulator] = {}

    def add(key: str, x: Tensor) -> None:
        if key not in moments:
            moments[key] = HessianAccumulator(matmul_of(layer))
        moments[key].add(x)

    with listening(layer, add):
        data.compute('quant', keep=())
    _reduce(moments)
    for slot in slots:
        rows = [(r, m.hessian()) for r, m in by_rows(moments, layer, slot)]
        if not rows:
            continue
        try:
            codes = _codes_of(layer, slot, rows, config)
        except ValueError as error:
            raise ValueError(f'{slot}: {error}') from error
        layer.set_codes(slot, codes)


def _codes_of(
    layer: QuantModule,
    slot: str,
    rows: list[tuple[slice, Tensor]],
    config: ReconstructionConfig,
) -> Tensor:
    """Return the codes of one weight, which are values if it is float."""
    if layer.weight_quantizer_of(slot) is None:
        parts = [(place, hessian, None) for place, hessian in rows]
        return fit_float(layer, slot, parts, config)
    hessian = rows[0][1] if len(rows) == 1 else rows
    return gptq_layer(layer, slot, hessian, damping=config.gptq_damping)


def _reduce(moments: dict[str, HessianAccumulator]) -> None:
    """Sum Hessians over the ranks on which the layer ran."""
    own = {
        key: (moment.total, moment.count) for key, moment in moments.items()
    }
    parts = gathered(own)
    if len(parts) == 1:
        return
    for key in sorted({key for part in parts for key in part}):
        given = [part[key] for part in parts if key in part]
        totals = [total for total, _ in given if total is not None]
        moment = moments.setdefault(key, HessianAccumulator())
        moment.total = torch.stack(totals).sum(dim=0)
        moment.count = sum(count for _, count in given)
