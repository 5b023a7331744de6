"""The steps of a sensitivity analysis, and what it writes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from taskptq.analysis.sensitivity.gradient import (
    CANDIDATES,
    NotDifferentiableError,
    estimate_losses,
)
from taskptq.analysis.sensitivity.grids import check_candidates
from taskptq.analysis.sensitivity.measured import (
    measure_losses,
    measure_roles,
    roles_of,
)
from taskptq.analysis.sensitivity.meter import Meter
from taskptq.analysis.sensitivity.metric import add_metric, num_evaluations
from taskptq.analysis.sensitivity.plot import plot_sensitivity
from taskptq.analysis.sensitivity.points import head_batches, small_batches
from taskptq.analysis.sensitivity.record import ESTIMATORS, SensitivityReport
from taskptq.analysis.sensitivity.state import MeasuredState
from taskptq.calibration.batches import batch_length
from taskptq.calibration.calibrate import calibrate
from taskptq.core.progress import Progress
from taskptq.core.setting_error import refuse
from taskptq.core.switches import quantizers
from taskptq.engine.pipeline import Forward, apply_rewrites, prepare_in_place
from taskptq.engine.recipe import Recipe
from taskptq.engine.task_metric import TaskMetric
from taskptq.version import __version__

__all__ = ['SensitivitySettings', 'Subject', 'analyse', 'write_report']

STATE_FILE = 'sensitivity_state.json'
REPORT_FILE = 'sensitivity.json'
PLOT_FILE = 'sensitivity.png'
EVALUATIONS = 'evaluations'
IMAGES_AT_ONCE = 4

logger = logging.getLogger('taskptq')


@dataclass(frozen=True, kw_only=True)
class SensitivitySettings:
    """How to analyse.

    Args:
        estimator: 'gradient', 'alone' or 'leave-out'; None takes gradients
            where the model has them, else 'alone'.
        candidates: Bits whose losses are estimated.
        num_probes: Random probes of each batch, for gradients; None takes
            as many as a stable estimate needs.
        num_measured: Images of whatever needs more than one pass: roles, and
            the estimators 'alone' and 'leave-out'.
        roles: Whether to measure what each role could give back.
        metric: Whether to run the task's own evaluation as well.
        resume: Whether to use the numbers of an interrupted run.
        seed: Seed of images and probes.

    Raises:
        SettingError: If a value is impossible.
    """

    estimator: str | None = None
    candidates: tuple[int, ...] = CANDIDATES
    num_probes: int | None = None
    num_measured: int = 8
    roles: bool = True
    metric: bool = False
    resume: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimator not in (None, *ESTIMATORS):
            raise refuse(
                'estimator',
                self.estimator,
                f'choose one of {", ".join(ESTIMATORS)}',
            )
        check_candidates(self.candidates)
        if self.num_probes is not None and self.num_probes < 1:
            raise refuse('num_probes', self.num_probes, 'give at least 1')
        if self.num_measured < 1:
            raise refuse(
                'num_measured', self.num_measured, 'give at least 1 image'
            )


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is analysed.

    Args:
        model: Float model with its weights; it is changed.
        batches: Collated batches.
        recipe: Sets quantizers and rewrites.
        forward: Runs the model on one batch.
        adapter: The model's adapter.
        config: Config that has the evaluator; None for a model in memory.
    """

    model: nn.Module
    batches: Sequence[Any]
    recipe: Recipe
    forward: Forward
    adapter: Any
    config: Config | None = None


def analyse(
    subject: Subject, settings: SensitivitySettings, *, out: Path | None
) -> SensitivityReport:
    """Prepare, calibrate, and find each tensor's loss.

    Args:
        subject: What is analysed; its model is changed.
        settings: How to analyse.
        out: Folder of the state to resume from; None keeps none.

    Raises:
        NotDifferentiableError: If gradients are asked for and the model has
            none.
    """
    model, batches = subject.model, subject.batches
    state = _state(subject, settings, out)
    apply_rewrites(
        model,
        batches,
        subject.recipe.rewrites,
        forward=subject.forward,
        qconfig=subject.recipe.qconfig,
    )
    prepare_in_place(
        model,
        subject.recipe.qconfig,
        batch=batches[0],
        forward=subject.forward,
    )
    calibrate(
        model,
        batches,
        forward=subject.forward,
        unreached=subject.recipe.calibration.get('unreached', 'error'),
    )
    report = _losses(subject, settings, state)
    if settings.roles:
        report = _with_roles(subject, settings, state, report)
    if settings.metric and subject.config is not None:
        report = _with_metric(subject, state, report, out)
    return report


def write_report(report: SensitivityReport, out: Path) -> None:
    """Write the report and its picture; the finished run needs no state."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.to_dict(), indent=1) + '\n'
    (out / REPORT_FILE).write_text(text, encoding='utf-8')
    plot_sensitivity(report, out / PLOT_FILE)
    (out / STATE_FILE).unlink(missing_ok=True)
    logger.info('wrote %s and %s', out / REPORT_FILE, out / PLOT_FILE)


def _state(
    subject: Subject, settings: SensitivitySettings, out: Path | None
) -> MeasuredState:
    """Return the numbers of an interrupted run of the same analysis."""
    if out is None:
        return MeasuredState()
    path = out / STATE_FILE
    if not settings.resume:
        path.unlink(missing_ok=True)
    owner = {
        'taskptq': __version__,
        'recipe': subject.recipe.digest(),
        'weights': _weights_digest(subject.model),
        'num_measured': settings.num_measured,
        'seed': settings.seed,
    }
    return MeasuredState(path, owner=owner)


def _weights_digest(model: nn.Module) -> str:
    """Return a short name that differs between weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _losses(
    subject: Subject, settings: SensitivitySettings, state: MeasuredState
) -> SensitivityReport:
    """Estimate the losses as asked, or as the model allows."""
    shared: dict[str, Any] = {
        'forward': subject.forward,
        'adapter': subject.adapter,
        'candidates': settings.candidates,
    }
    note = ''
    if settings.estimator in (None, 'gradient'):
        first = batch_length(subject.batches[0]) or 1
        total = first * len(subject.batches)
        try:
            with Progress('sensitivities', total=total) as progress:
                return estimate_losses(
                    subject.model,
                    subject.batches,
                    num_probes=settings.num_probes,
                    seed=settings.seed,
                    advance=progress.advance,
                    **shared,
                )
        except NotDifferentiableError as error:
            if settings.estimator == 'gradient':
                raise
            note = f'Measured one tensor at a time, since {error}.'
            logger.warning(note)
    names = [name for name, one in quantizers(subject.model) if one.calibrated]
    with Progress('sensitivities', total=len(names)) as progress:
        report = measure_losses(
            subject.model,
            subject.batches,
            estimator=settings.estimator or 'alone',
            num_images=settings.num_measured,
            state=state,
            advance=progress.advance,
            **shared,
        )
    return replace(report, notes=[note]) if note else report


def _with_roles(
    subject: Subject,
    settings: SensitivitySettings,
    state: MeasuredState,
    report: SensitivityReport,
) -> SensitivityReport:
    """Return a report with the ceiling of each role."""
    parts = small_batches(subject.batches, size=IMAGES_AT_ONCE)
    few = head_batches(parts, num_images=settings.num_measured)
    meter = Meter(subject.model, few, adapter=subject.adapter)
    count = len(roles_of(report.points))
    with Progress('roles', total=count) as progress:
        total, roles = measure_roles(
            meter, report.points, state=state, advance=progress.advance
        )
    return replace(report, total=total, roles=roles)


def _with_metric(
    subject: Subject,
    state: MeasuredState,
    report: SensitivityReport,
    out: Path | None,
) -> SensitivityReport:
    """Return a report with the task's metric."""
    assert subject.config is not None
    folder = Path('work_dirs') if out is None else out
    metric = TaskMetric(subject.config, subject.model, folder / EVALUATIONS)
    count = num_evaluations(report.points)
    with Progress('evaluations', total=count) as progress:
        found = add_metric(
            subject.model,
            report,
            evaluate=metric.evaluate,
            state=state,
            advance=progress.advance,
        )
    return replace(found, metric=metric.name)
