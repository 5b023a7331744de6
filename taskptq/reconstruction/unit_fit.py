"""Fit one unit: in closed form, by training, or by both in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.capture.nesting import flatten, named
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.losses import MSEReconLoss, ReconLoss
from taskptq.reconstruction.position_weights import PositionWeights
from taskptq.reconstruction.rollback import Snapshot, keep_better
from taskptq.reconstruction.rounding.closed_form import (
    correct_biases,
    round_unit,
)
from taskptq.reconstruction.rounding.learned import (
    Minibatch,
    UnitResult,
    train_unit,
)
from taskptq.reconstruction.set_loss import set_loss
from taskptq.reconstruction.weighted_loss import PositionWeightedLoss


def fit_unit(
    unit: Unit,
    data: UnitData,
    config: ReconstructionConfig,
    *,
    loss: ReconLoss,
    adapter: Any = None,
    weights: PositionWeights | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    on_trained: Callable[[Unit], None] | None = None,
) -> UnitResult:
    """Fit one unit as the settings ask; draws from the global generator.

    Training that starts from solved codes is undone if the loss of the whole
    set is not better for it.

    Args:
        unit: Calibrated unit.
        data: Its inputs and float outputs.
        config: Settings.
        loss: Reconstruction loss of units.
        adapter: Passed to the loss.
        weights: Of positions, for the closed-form steps and the default
            loss.
        on_step: Called after each step with its number and loss.
        on_trained: See :func:`train_unit`.
    """
    start = time.perf_counter()
    if config.solves_codes or config.reads_both_models:
        result = round_unit(unit, data, config, weights=weights)
    if config.rounding != 'gptq':
        data.prepare_sampling()
        if weights is not None and isinstance(loss, MSEReconLoss):
            loss = PositionWeightedLoss(weights, data.lengths)
        solved = Snapshot(unit) if config.start == 'gptq' else None
        result = train_unit(
            unit,
            lambda: _draw(unit, data, config),
            config,
            loss=loss,
            adapter=adapter,
            on_step=on_step,
            on_trained=on_trained,
        )
        if result.steps and config.bias_correction:
            correct_biases(unit, data, weights=weights)
        if result.steps and solved is not None:
            keep_better(
                unit,
                result,
                before=solved,
                measure=lambda: set_loss(unit, data, loss),
            )
    result.seconds = time.perf_counter() - start
    return result


def _draw(
    unit: Unit, data: UnitData, config: ReconstructionConfig
) -> Minibatch:
    # QDrop also drops the unit's inputs (Eq. 7).
    calls, image_ids = data.sample(
        config.batch_size, drop_prob=config.drop_prob
    )
    targets = [leaf for _, outputs in calls for leaf in outputs]

    def run() -> Tensor | dict[str, Tensor]:
        outputs: list[Tensor] = []
        for (args, kwargs), _ in calls:
            outputs.extend(flatten(unit.module(*args, **kwargs))[0])
        return named(outputs)

    return Minibatch(run=run, target=named(targets), image_ids=image_ids)
