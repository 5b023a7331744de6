"""Calibrate the initial ranges of a quantization-aware training."""

from __future__ import annotations

from pathlib import Path

from mmengine.runner import Runner

from taskptq.calibration import CalibrationReport
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import (
    CalibrationBatches,
    EvaluationSource,
    build_calibration,
)
from taskptq.engine.contexts import seeded, shared_log
from taskptq.engine.datasets import loader_dataset, loader_pipeline
from taskptq.engine.pipeline import report_what_ran
from taskptq.prepare import SwapReport
from taskptq.qat.model import calibrate_rest

__all__ = ['RunCalibration', 'calibrate_training', 'choose_batches']


class RunCalibration:
    """The calibration of one run.

    Args:
        settings: Settings.
        seed: Seed of the run.
    """

    def __init__(self, settings: CalibrationConfig, *, seed: int) -> None:
        self.settings = settings
        self.seed = seed
        self._batches: CalibrationBatches | None = None

    def choose(self, runner: Runner) -> CalibrationBatches:
        """Return the calibration batches; see :func:`choose_batches`."""
        if self._batches is None:
            self._batches = choose_batches(
                runner, settings=self.settings, seed=self.seed
            )
        return self._batches

    def run(self, runner: Runner, swapped: SwapReport) -> CalibrationReport:
        """Calibrate, and let go of the batches.

        Args:
            runner: Runner in training; its model is prepared.
            swapped: Report of the preparation; gets the traced products.
        """
        batches, self._batches = self.choose(runner), None
        return calibrate_training(
            runner,
            batches,
            settings=self.settings,
            seed=self.seed,
            swapped=swapped,
        )


def choose_batches(
    runner: Runner, *, settings: CalibrationConfig, seed: int
) -> CalibrationBatches:
    """Choose the calibration images of a training.

    Args:
        runner: Runner in training.
        settings: Settings of the calibration.
        seed: Seed of the choice.

    Raises:
        ValueError: See ``build_calibration``; or if the config has no
            validation or test dataloader.
    """
    with seeded(seed), shared_log():
        return build_calibration(
            settings,
            source=_evaluation_source(runner),
            default=loader_dataset(runner._train_dataloader),
        )


def _evaluation_source(runner: Runner) -> EvaluationSource:
    """Return the evaluation whose transforms calibration uses."""
    if runner.val_loop is not None:
        return EvaluationSource.from_loader(
            runner.val_loop.dataloader,
            plain_pipeline=loader_pipeline(runner.cfg.get('val_dataloader')),
        )
    loader = runner.cfg.get('test_dataloader')
    if loader is None:
        raise ValueError(
            'the config has neither val_dataloader nor test_dataloader: '
            'calibration needs their transforms'
        )
    return EvaluationSource.from_config(loader)


def calibrate_training(
    runner: Runner,
    batches: CalibrationBatches,
    *,
    settings: CalibrationConfig,
    seed: int,
    swapped: SwapReport,
) -> CalibrationReport:
    """Calibrate the quantizers without a range and report what ran.

    Args:
        runner: Runner in training; its model is prepared.
        batches: From :func:`choose_batches`.
        settings: Settings of the calibration.
        seed: Seed of the run.
        swapped: Report of the preparation; gets the traced products.
    """
    with seeded(seed), shared_log():
        report = calibrate_rest(
            runner.model, batches, unreached=settings.unreached
        )
        report_what_ran(
            runner.model,
            batches,
            swapped=swapped,
            calibrated=report,
            work_dir=Path(runner.work_dir),
        )
    return report
