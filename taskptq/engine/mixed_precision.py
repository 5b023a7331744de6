"""Choose the bits of each tensor after calibration, and verify the choice."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from torch import nn

from taskptq.analysis.mixed_precision.cost import Problem, build_problem
from taskptq.analysis.mixed_precision.front import (
    Front,
    FrontPoint,
    find_front,
)
from taskptq.analysis.mixed_precision.operands import trace_operands
from taskptq.analysis.mixed_precision.overrides import (
    ChangedPoints,
    changes_of,
    settings_of,
    with_settings,
)
from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.analysis.mixed_precision.units import group_units
from taskptq.analysis.mixed_precision.verify import Reference, loss_allowed
from taskptq.analysis.sensitivity.gradient import (
    NotDifferentiableError,
    estimate_losses,
)
from taskptq.analysis.sensitivity.points import head_batches
from taskptq.analysis.sensitivity.record import SensitivityReport
from taskptq.engine.contexts import seeded
from taskptq.engine.mixed_precision_report import (
    Trial,
    choice_report,
    write_choice,
)
from taskptq.engine.prediction_agreement import agreement_of
from taskptq.engine.recipe import Recipe
from taskptq.modules.base import quant_modules
from taskptq.prepare import SwapReport
from taskptq.prepare.swap import EDGE_LAYER, bits_of

__all__ = ['Calibrated', 'choose_precision']

logger = logging.getLogger('taskptq')

# Choices that are tried besides the recipe's own; each takes a pass over the
# calibration images.
MOST_TRIALS = 4
# Measured over estimated loss of the recipe, at least: estimates of small
# errors add up well, and those of broken models say little.
LEAST_TRUST = 0.25
# What keeps a model's outputs from being compared or differentiated.
NOT_MEASURABLE = (
    NotDifferentiableError,
    NotImplementedError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A calibrated model, and what it was calibrated with.

    Args:
        model: Prepared and calibrated.
        batches: All calibration batches of this rank.
        forward: Runs a model on one batch.
        adapter: The model's adapter.
        swapped: Report of the swap; its rows get the chosen bits.
        covering: Indices of batches that together call every layer.
    """

    model: nn.Module
    batches: Sequence[Any]
    forward: Any
    adapter: Any
    swapped: SwapReport
    covering: Sequence[int]

    @property
    def edges(self) -> frozenset[str]:
        """First and last layers."""
        return frozenset(
            row.name for row in self.swapped.rows if row.reason == EDGE_LAYER
        )


def choose_precision(
    calibrated: Calibrated, *, recipe: Recipe, work_dir: Path
) -> tuple[Recipe, dict[str, Any]]:
    """Choose bits as the recipe's ``mixed_precision`` says, in place.

    Where the outputs cannot be compared or differentiated, the recipe stays
    as it is, with a warning.

    Args:
        calibrated: Model and data.
        recipe: With ``mixed_precision``.
        work_dir: Folder of ``mixed_precision.json``, ``mixed_precision.png``
            and ``chosen_recipe.py``.

    Returns:
        The recipe with the choice as overrides, and the report.

    Raises:
        ValueError: If no choice keeps the budget.
    """
    config = recipe.mixed_precision
    assert config is not None
    start = time.perf_counter()
    few = head_batches(calibrated.batches, num_images=config.num_images)
    with seeded(recipe.seed):
        try:
            found = _sensitivities(calibrated, few, config, seed=recipe.seed)
            reference = Reference(
                calibrated.model, few, adapter=calibrated.adapter
            )
        except NOT_MEASURABLE as error:
            return recipe, _skipped(error)
        front = find_front(_problem(calibrated, found, config), config)
        search = _Search(calibrated, reference, front, recipe)
        chosen = search.run(loss_allowed(config.keep))
    report = choice_report(
        front,
        chosen,
        trials=search.trials,
        config=config,
        sensitivity=found,
        seconds=time.perf_counter() - start,
    )
    _update_rows(calibrated, {layer for layer, _ in chosen.changes})
    result = replace(recipe, qconfig=chosen.qconfig)
    if is_main_process():
        write_choice(report, recipe=result, work_dir=work_dir)
    logger.info('%s', report['sentence'])
    return result, report


def _update_rows(calibrated: Calibrated, changed: set[str]) -> None:
    """Let the rows of the swap say which bits were chosen."""
    modules = dict(quant_modules(calibrated.model))
    none = dict.fromkeys(
        ('weight_bits', 'activation_bits', 'attention_bits', 'softmax_bits')
    )
    rows = calibrated.swapped.rows
    for number, row in enumerate(rows):
        if row.name not in changed:
            continue
        bits = bits_of(modules[row.name])
        reason = f'qconfig.keep_float {row.name!r}'
        fate = {} if bits else {'status': 'float', 'reason': reason}
        rows[number] = replace(row, **{**none, **bits, **fate})


def _skipped(error: Exception) -> dict[str, Any]:
    reason = ' '.join(str(error).split()) or type(error).__name__
    logger.warning(
        'Mixed precision is left out, all tensors keep the bits of the '
        'recipe: %s',
        reason,
    )
    return {'skipped': reason}


def _sensitivities(
    calibrated: Calibrated,
    batches: Sequence[Any],
    config: MixedPrecisionConfig,
    *,
    seed: int,
) -> SensitivityReport:
    bits = [bits for bits in config.candidates if not isinstance(bits, str)]
    return estimate_losses(
        calibrated.model,
        batches,
        forward=calibrated.forward,
        adapter=calibrated.adapter,
        candidates=bits or (8,),
        seed=seed,
    )


def _problem(
    calibrated: Calibrated,
    found: SensitivityReport,
    config: MixedPrecisionConfig,
) -> Problem:
    units = group_units(
        found.points,
        candidates=config.candidates,
        only=config.points,
        edges=calibrated.edges,
    )
    products = trace_operands(
        calibrated.model,
        [calibrated.batches[i] for i in calibrated.covering],
        forward=calibrated.forward,
    )
    return build_problem(units, products, edges=calibrated.edges)


class _Search:
    """Try choices of a front, the cheapest first, until one is verified."""

    def __init__(
        self,
        calibrated: Calibrated,
        reference: Reference,
        front: Front,
        recipe: Recipe,
    ) -> None:
        self._calibrated = calibrated
        self._reference = reference
        self._front = front
        self._recipe = recipe
        self.trials: list[Trial] = []

    def run(self, allowed: float) -> Trial:
        """Leave the model with the first choice that holds, or the best.

        Args:
            allowed: Largest measured output loss.

        Returns:
            The trial that stays.
        """
        own = self._front.own
        named, _ = self._try(own)
        allows = self._front.allows(own)
        if allows and named.measured_loss <= allowed:
            return named
        # Large errors grow differently than the estimate says.
        trust = named.measured_loss / own.loss if own.loss > 0 else 1.0
        for point in self._points(allowed / max(trust, LEAST_TRUST)):
            trial, changed = self._try(point)
            if trial.measured_loss <= allowed:
                return trial
            changed.undo()
        tried = self.trials if allows else self.trials[1:]
        best = min(tried, key=lambda trial: trial.measured_loss)
        self._apply(best)
        return best

    def _points(self, allowed: float) -> list[FrontPoint]:
        """Return a few of the candidates, the first and the last included."""
        points = list(self._front.candidates(allowed))
        if len(points) <= MOST_TRIALS:
            return points
        step = (len(points) - 1) / (MOST_TRIALS - 1)
        return [points[round(step * i)] for i in range(MOST_TRIALS)]

    def _try(self, point: FrontPoint) -> tuple[Trial, ChangedPoints]:
        """Apply a choice and measure it."""
        model = self._calibrated.model
        changes = changes_of(self._front.problem, point.choice)
        settings = settings_of(changes)
        trial = Trial(
            point=point,
            changes=changes,
            settings=settings,
            qconfig=with_settings(self._recipe.qconfig, settings),
        )
        changed = self._apply(trial)
        measured = self._reference.measure(model)
        trial.measured_loss = measured.loss
        trial.agreement = agreement_of(
            self._calibrated.adapter,
            self._reference.batches,
            target=self._reference.heads,
            quant=measured.heads,
        )
        self.trials.append(trial)
        return trial, changed

    def _apply(self, trial: Trial) -> ChangedPoints:
        changed = ChangedPoints(
            self._calibrated.model,
            trial.qconfig,
            changed=trial.changes,
            edges=self._calibrated.edges,
        )
        if trial.changes:
            changed.calibrate(
                self._calibrated.batches, forward=self._calibrated.forward
            )
        return changed
