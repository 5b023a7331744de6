"""Try choices of bits on a calibrated model until one holds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from taskptq.analysis.mixed_precision.front import Front, FrontPoint
from taskptq.analysis.mixed_precision.overrides import (
    ChangedPoints,
    changes_of,
    settings_of,
    with_settings,
)
from taskptq.analysis.mixed_precision.units import Bits, Key
from taskptq.analysis.mixed_precision.verify import Reference
from taskptq.prepare import QConfig

__all__ = ['Search', 'Trial']

# Choices that are tried besides the recipe's own; each takes a pass over the
# calibration images.
MOST_TRIALS = 4
# Measured over estimated loss of the recipe, at least: estimates of small
# errors add up well, and those of broken models say little.
LEAST_TRUST = 0.25


@dataclass(kw_only=True)
class Trial:
    """One choice, applied and measured.

    Args:
        point: Choice and estimate.
        changes: Units with other bits than the recipe gave.
        settings: The changes as ``overrides`` and ``keep_float``.
        qconfig: The recipe's qconfig with these settings.
        measured_loss: Output loss per image.
    """

    point: FrontPoint
    changes: Mapping[Key, Bits]
    settings: Mapping[str, Sequence[Any]]
    qconfig: QConfig
    measured_loss: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            'cost': self.point.cost,
            'origin': self.point.origin,
            'gap': self.point.gap,
            'changed_points': len(self.changes),
            'estimated_loss': self.point.loss,
            'measured_loss': self.measured_loss,
        }


@dataclass(kw_only=True)
class Search:
    """Tries the choices of a front, the cheapest first.

    Args:
        model: Calibrated as ``qconfig`` says; changed in place.
        batches: All calibration batches of this rank.
        forward: Runs the model on one batch.
        reference: Float outputs to compare with.
        front: Choices.
        qconfig: The recipe's.
        edges: First and last layers.
        weights: Measure weights as they are rounded now; if not, their
            estimated loss is added to that of all other points.
    """

    model: nn.Module
    batches: Sequence[Any]
    forward: Any
    reference: Reference
    front: Front
    qconfig: QConfig
    edges: Collection[str]
    weights: bool = True
    trials: list[Trial] = field(default_factory=list)

    def run(self, allowed: float) -> Trial:
        """Leave the model with the first choice that holds, or the best.

        Args:
            allowed: Largest measured output loss.

        Returns:
            The trial that stays.
        """
        own = self.front.own
        named, _ = self._try(own)
        keeps = self.front.allows(own)
        if keeps and named.measured_loss <= allowed and self._is_cheapest:
            return named
        # Large errors grow differently than the estimate says.
        trust = named.measured_loss / own.loss if own.loss > 0 else 1.0
        for point in self._points(allowed / max(trust, LEAST_TRUST)):
            trial, changed = self._try(point)
            if trial.measured_loss <= allowed:
                return trial
            changed.undo()
        tried = self.trials if keeps else self.trials[1:]
        best = min(tried, key=lambda trial: trial.measured_loss)
        self._apply(best)
        return best

    @property
    def _is_cheapest(self) -> bool:
        """Whether no choice costs less than the recipe's own."""
        return self.front.own.cost <= self.front.points[0].cost * (1 + 1e-9)

    def _points(self, allowed: float) -> list[FrontPoint]:
        """Return a few of the candidates, the first and the last included."""
        points = list(self.front.candidates(allowed))
        if len(points) <= MOST_TRIALS:
            return points
        step = (len(points) - 1) / (MOST_TRIALS - 1)
        return [points[round(step * i)] for i in range(MOST_TRIALS)]

    def _try(self, point: FrontPoint) -> tuple[Trial, ChangedPoints]:
        """Apply a choice and measure it."""
        changes = changes_of(self.front.problem, point.choice)
        settings = settings_of(changes)
        trial = Trial(
            point=point,
            changes=changes,
            settings=settings,
            qconfig=with_settings(self.qconfig, settings),
        )
        changed = self._apply(trial)
        measured = self.reference.measure(self.model, weights=self.weights)
        trial.measured_loss = measured.loss
        if not self.weights:
            trial.measured_loss += self._loss_of_weights(point)
        self.trials.append(trial)
        return trial, changed

    def _loss_of_weights(self, point: FrontPoint) -> float:
        return sum(
            unit.losses[point.choice[key]]
            for key, unit in self.front.problem.units.items()
            if unit.point == 'weight'
        )

    def _apply(self, trial: Trial) -> ChangedPoints:
        changed = ChangedPoints(
            self.model,
            trial.qconfig,
            changed=trial.changes,
            edges=self.edges,
        )
        if trial.changes:
            changed.calibrate(self.batches, forward=self.forward)
        return changed
