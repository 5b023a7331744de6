"""Reconstruction of a whole model, unit by unit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskptq.calibration.calibrate import Forward
from taskptq.core.distributed import own_rank
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.prepare.blocks import Unit, split_blocks
from taskptq.reconstruction.capture.cache import cache_of
from taskptq.reconstruction.capture.capture import Capturer
from taskptq.reconstruction.capture.disk import estimate
from taskptq.reconstruction.capture.provenance import Plan, read_later
from taskptq.reconstruction.capture.tracing import (
    FloatBatch,
    check_order,
    common_calls,
    first_full_batch,
    trace,
)
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.input_ranges import fit_input_ranges
from taskptq.reconstruction.losses import MSEReconLoss, ReconLoss
from taskptq.reconstruction.network import (
    optional_steps,
    train_network,
    trained_layers,
)
from taskptq.reconstruction.position_weights import (
    PositionWeights,
    find_position_weights,
)
from taskptq.reconstruction.progress import RunProgress
from taskptq.reconstruction.report import ReconstructionReport
from taskptq.reconstruction.resume import UnitStates
from taskptq.reconstruction.state_folder import locked
from taskptq.reconstruction.unit_fit import fit_unit

logger = logging.getLogger('taskptq')


def reconstruct(
    model: nn.Module,
    batches: Sequence[Any],
    config: ReconstructionConfig,
    *,
    forward: Forward,
    loss: ReconLoss | None = None,
    adapter: Any = None,
    state_dir: Path | None = None,
    shared_dir: Path | None = None,
    cache_dir: Path | None = None,
    progress: bool = True,
    on_trained: Callable[[Unit], None] | None = None,
) -> ReconstructionReport:
    """Reconstruct a calibrated model in place.

    Args:
        model: Swapped and calibrated model.
        batches: Calibration batches (this rank's share).
        config: Settings.
        forward: Runs the model on one batch.
        loss: Reconstruction loss; None is the normalised MSE.
        adapter: The model's adapter; needed by the network scope and by
            ``network_steps``.
        state_dir: Folder of the per-unit states for resuming, locked
            meanwhile; None saves none.
        shared_dir: Folder of unit states that reconstructions share, so that
            runs that differ in ``network_steps`` train their blocks once.
            None keeps them in ``state_dir``.
        cache_dir: Folder for spilled activations; None is the settings'.
        progress: Show a live display if there is a terminal.
        on_trained: Called with each trained unit while its roundings are
            soft.

    Raises:
        ValueError: If there is no batch, the network scope lacks an
            adapter, or the activations don't fit on the disk.
        FolderInUseError: If another run uses ``state_dir``.
    """
    if not batches:
        raise ValueError('calibration set is empty: give at least one batch')
    if adapter is None and config.needs_adapter:
        raise ValueError(
            "reconstruction.scope='network', network_steps, position_weights "
            "and input_ranges need the model's adapter: register one for the "
            'detector class'
        )
    # Fail now, not after hours of training.
    trained_layers(model, config.network_train)
    start = time.perf_counter()
    run = _Run(
        model, batches, config, forward, loss or MSEReconLoss(), adapter
    )
    run.on_trained = on_trained
    run.cache_dir = cache_dir
    with ExitStack() as stack:
        if state_dir is not None:
            stack.enter_context(locked(state_dir))
        stack.enter_context(
            torch.random.fork_rng(devices=_cuda_devices(model))
        )
        report = run.all(state_dir, shared_dir, progress)
        report.input_ranges = run.input_ranges
    # Steps on the network start from the blocks' roundings and replace them.
    last = report.units[-1:] if config.network_steps else report.units
    trained = [u for u in last if u.steps and u.num_weights]
    if trained:
        weights = sum(unit.num_weights for unit in trained)
        for name in ('settled', 'flipped'):
            shares = (getattr(u, name) * u.num_weights for u in trained)
            setattr(report, name, sum(shares) / weights)
    report.seconds = time.perf_counter() - start
    logger.info(
        'reconstructed %d units in %.0f s, %.2f whole-model passes, %d chain '
        'breaks',
        len(report.units),
        report.seconds,
        report.num_forwards,
        report.num_breaks,
    )
    return report


class _Run:
    """The state of one reconstruction."""

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Any],
        config: ReconstructionConfig,
        forward: Forward,
        loss: ReconLoss,
        adapter: Any,
    ) -> None:
        self.model = model
        self.batches = batches
        self.config = config
        self.forward = forward
        self.loss = loss
        # With network_steps, the configured loss applies to that phase only.
        self.unit_loss = MSEReconLoss() if config.network_steps else loss
        self.adapter = adapter
        self.cache_dir: Path | None = None
        self.on_trained: Callable[[Unit], None] | None = None
        self.weights: PositionWeights | None = None
        self.input_ranges: dict[str, float] = {}
        self.num_traces = 0  # single-batch passes that look for names

    def all(
        self,
        state_dir: Path | None,
        shared_dir: Path | None,
        progress: bool,
    ) -> ReconstructionReport:
        """Run all phases that the settings ask for."""
        if self.config.input_ranges:
            self.input_ranges = fit_input_ranges(
                self.model,
                self.batches,
                adapter=self.adapter,
                seed=self.config.seed,
                optional=self.config.position_optional,
            )
        states = UnitStates(
            state_dir,
            self.model,
            self.config,
            loss=self.loss,
            num_batches=len(self.batches),
        )
        if self.config.scope == 'network':
            return self.network(states, progress)
        unit_states = states
        if shared_dir is not None:
            unit_states = UnitStates(
                shared_dir,
                self.model,
                self.config.of_units(),
                loss=self.unit_loss,
                num_batches=len(self.batches),
                shared=True,
            )
        report = self.units(unit_states, progress)
        if self.config.network_steps:
            self.network_steps(states, report, progress)
        return report

    def units(
        self, states: UnitStates, progress: bool
    ) -> ReconstructionReport:
        """Run layer or block scope."""
        plans, uncalled, traced = self._plans()
        report = ReconstructionReport(uncalled=uncalled)
        cache = cache_of(self.config, directory=self.cache_dir)
        cache.reserve(
            estimate(
                plans, num_batches=len(self.batches), max_bytes=cache.max_bytes
            )
        )
        capturer = Capturer(
            self.model, plans, self.batches, forward=self.forward, cache=cache
        )
        if self.config.position_weights:
            self.weights = find_position_weights(
                self.model,
                self.batches,
                adapter=self.adapter,
                seed=self.config.seed,
                units=[plan.unit for plan in plans],
                optional=self.config.position_optional,
            )
        try:
            capturer.capture_float(traced)
            with RunProgress(
                len(plans), self.config.steps, enabled=progress
            ) as display:
                for index in range(len(plans)):
                    self._unit(index, capturer, states, report, display)
        finally:
            report.spilled_bytes = cache.spilled_bytes
            cache.close()
        report.num_forwards = capturer.num_passes + self.num_traces / len(
            self.batches
        )
        return report

    def network_steps(
        self,
        states: UnitStates,
        report: ReconstructionReport,
        progress: bool,
    ) -> None:
        """Train the whole network after all units."""
        config = self.config.of_network()
        with optional_steps(self.model, optional=config.network_optional):
            self._network(len(report.units), config, states, report, progress)

    def _plans(self) -> tuple[list[Plan], list[str], FloatBatch]:
        layers = {name for name, _ in quant_modules(self.model)}
        chosen, found, tried = first_full_batch(
            self.model, self.batches, layers=layers, forward=self.forward
        )
        self.num_traces, traced = tried, FloatBatch(chosen)
        units = split_blocks(
            self.model,
            scope=self.config.scope,
            callable_names=common_calls(found),
            extra=self.config.blocks,
        )
        plans = trace(
            self.model,
            units,
            self.batches[chosen],
            forward=self.forward,
            keep=traced,
        )
        check_order(plans)
        planned = {
            id(module)
            for plan in plans
            for module in plan.unit.module.modules()
        }
        uncalled = [
            name
            for name, module in quant_modules(self.model)
            if id(module) not in planned and _has_codes(module)
        ]
        for name in uncalled:
            logger.warning(
                '%s is not called by the first batches (of every rank) and is '
                'rounded to nearest',
                name,
            )
        return plans, uncalled, traced

    def _unit(
        self,
        index: int,
        capturer: Capturer,
        states: UnitStates,
        report: ReconstructionReport,
        display: RunProgress,
    ) -> None:
        plan, cache = capturer.plans[index], capturer.cache
        # The first unit reads the image, which both models share.
        if index and plan.captured(index):
            capturer.capture_quant(index)
            report.num_breaks += 1
        data = UnitData(
            capturer,
            index,
            cache=cache,
            rows_per_image=self.config.rows_per_image,
        )
        data.compute('float', keep=None)
        display.start_unit(index, plan.unit.name)
        result = states.load(index, plan.unit)
        if result is None:
            torch.manual_seed(_seed(self.config.seed, index))
            result = fit_unit(
                plan.unit,
                data,
                self.config,
                loss=self.unit_loss,
                adapter=self.adapter,
                weights=self.weights,
                on_step=display.step,
                on_trained=self.on_trained,
            )
            states.save(index, plan.unit, result)
        else:
            report.take_over(result)
        report.units.append(result)
        later = read_later(capturer.plans, index)
        wanted = [s for s in later if s.unit == index and s.side == 'out']
        if wanted:
            data.compute('quant', keep=wanted)
        capturer.forget(index, later)

    def network(
        self, states: UnitStates, progress: bool
    ) -> ReconstructionReport:
        """Run network scope: all layers at once on the adapter's heads."""
        report = ReconstructionReport()
        self._network(0, self.config, states, report, progress)
        return report

    def _network(
        self,
        index: int,
        config: ReconstructionConfig,
        states: UnitStates,
        report: ReconstructionReport,
        progress: bool,
    ) -> None:
        report.num_forwards += 1.0
        unit = Unit('', self.model)
        result = states.load(index, unit)
        if result is not None:
            report.take_over(result)
        else:
            torch.manual_seed(_seed(config.seed, index))
            result = train_network(
                self.model,
                self.batches,
                config,
                loss=self.loss,
                adapter=self.adapter,
                cache_dir=self.cache_dir,
                progress=progress,
                on_trained=self.on_trained,
            )
            states.save(index, unit, result)
            describe = getattr(self.loss, 'report', None)
            report.loss = {} if describe is None else describe()
        if (
            result.flipped == 0
            and config.weight_lr > 0
            and not result.taken_back
        ):
            logger.warning(
                'no rounding flipped in %d steps on the network, only scales '
                'changed: raise weight_lr=%g',
                result.steps,
                config.weight_lr,
            )
        report.units.append(result)


def _has_codes(module: QuantModule) -> bool:
    """Whether any weight of a counterpart can be fitted."""
    return any(
        module.weight_values_of(parameter) is not None
        for parameter, _ in module.active_slots()
    )


def _seed(seed: int, index: int) -> int:
    """Return the seed of one unit, independent of interruptions."""
    return (seed * 1_000_003 + index) * 1_009 + own_rank()


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    devices = {p.device for p in model.parameters()}
    return [device for device in devices if device.type == 'cuda']
