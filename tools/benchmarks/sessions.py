"""One unit of a model, ready to train with our own loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from taskptq.engine.pipeline import run_batch
from taskptq.prepare.blocks import Unit, split_blocks
from taskptq.reconstruction.capture.cache import ActivationCache
from taskptq.reconstruction.capture.capture import Capturer
from taskptq.reconstruction.capture.tracing import called_modules, trace
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.losses import MSEReconLoss
from taskptq.reconstruction.progress import RunProgress
from taskptq.reconstruction.reconstruct import _Run
from taskptq.reconstruction.rounding.learned import UnitResult
from taskptq.reconstruction.unit_fit import fit_unit


def units_of(
    model: nn.Module, batch: Any, config: ReconstructionConfig
) -> list[Unit]:
    """Return the units of a reconstruction, in execution order."""
    called = called_modules(model, batch, forward=run_batch)
    units = split_blocks(
        model, scope=config.scope, callable_names=called, extra=config.blocks
    )
    return [
        plan.unit for plan in trace(model, units, batch, forward=run_batch)
    ]


class Session:
    """One unit with its inputs and targets, captured after the prefix.

    Args:
        model: Calibrated model.
        unit: The unit.
        batches: Calibration batches.
        config: Settings.
    """

    def __init__(
        self,
        model: nn.Module,
        unit: Unit,
        batches: Sequence[Any],
        config: ReconstructionConfig,
    ) -> None:
        self.unit = unit
        self.config = config
        self.run = _Run(
            model, batches, config, run_batch, MSEReconLoss(), None
        )
        plans = trace(model, [unit], batches[0], forward=run_batch)
        self.num_calls = len(plans[0].calls)
        self.cache = ActivationCache(config.cache_bytes)
        capturer = Capturer(
            model, plans, batches, forward=run_batch, cache=self.cache
        )
        capturer.capture_float()
        capturer.capture_quant(0)
        self.data = UnitData(
            capturer, 0, cache=self.cache, rows_per_image=config.rows_per_image
        )
        self.data.compute('float', keep=None)

    def train(self) -> UnitResult:
        """Train the unit again; the result holds the time it took."""
        display = RunProgress(1, self.config.steps, enabled=False)
        return fit_unit(
            self.unit,
            self.data,
            self.config,
            loss=self.run.unit_loss,
            on_step=display.step,
        )

    def close(self) -> None:
        """Free the activations."""
        self.cache.close()
