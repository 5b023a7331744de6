"""Reconstruction steps against their limit: the float block's own work.

A step runs the block forward and backward once, so that of the float block at
the same batch is what it cannot fall below. Measured in CPU time of one
thread, in turns, so that other work on the machine counts little.

What a step takes beyond that is elementwise: rounding, drawing and mixing
activations and weights. It is given in passes: how often torch could read and
write all of the unit's quantized inputs and weights once in that time.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import run_setup
from benchmarks.reconstruction_speed import spread
from benchmarks.sessions import Session, units_of
from taskptq.core import float_only, quantizing
from taskptq.core.switches import quantizers
from taskptq.modules.base import quant_modules
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.capture.nesting import flatten, is_float
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.unit_fit import fit_unit

TARGET = 1.3


class FloatStep:
    """Forward and backward of a float block, on the inputs of our steps.

    Gradients reach the inputs and all parameters, as in ours they reach the
    scales of the inputs' grids and all weights.

    Args:
        session: Its unit is copied.
    """

    def __init__(self, session: Session) -> None:
        self.module = copy.deepcopy(session.unit.module)
        for parameter in self.module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self.calls, _ = session.data.sample(session.config.batch_size)

    def run(self) -> None:
        """Run once."""
        for (args, kwargs), targets in self.calls:
            leaves, _ = flatten((args, kwargs))
            for leaf in leaves:
                if is_float(leaf):
                    leaf.requires_grad_(True)
                    leaf.grad = None
            self.module.zero_grad(set_to_none=True)
            with float_only(self.module):
                found = flatten(self.module(*args, **kwargs))[0]
            _loss(found, targets).backward()


def _loss(found: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    losses = [
        nn.functional.mse_loss(one, other)
        for one, other in zip(found, targets, strict=True)
        if one.requires_grad
    ]
    return torch.stack(losses).sum()


def _step_seconds(session: Session) -> list[float]:
    """Train a unit; return the CPU seconds of each step but the first."""
    ends: list[float] = []
    fit_unit(
        session.unit,
        session.data,
        session.config,
        loss=session.run.unit_loss,
        on_step=lambda step, loss: ends.append(time.process_time()),
    )
    return [after - before for before, after in itertools.pairwise(ends)]


@torch.no_grad()
def quantized_tensors(session: Session) -> list[Tensor]:
    """Return a copy of each tensor that a step quantizes.

    Args:
        session: Its unit is run once.
    """
    found: list[Tensor] = []

    def keep(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.append(args[0].clone())

    module = session.unit.module
    handles = [
        quantizer.register_forward_pre_hook(keep)
        for _, quantizer in quantizers(module)
    ]
    calls, _ = session.data.sample(session.config.batch_size)
    with quantizing(module):
        for (args, kwargs), _ in calls:
            module(*args, **kwargs)
    for handle in handles:
        handle.remove()
    # Weights that are rounded already pass by their quantizers.
    return found + [
        getattr(counterpart, name).detach().clone()
        for _, counterpart in quant_modules(module)
        for name in counterpart.rounded_parameters
    ]


@torch.no_grad()
def pass_seconds(tensors: Sequence[Tensor], *, repeats: int) -> float:
    """Return the CPU seconds of one multiplication of each tensor.

    Args:
        tensors: Of any shapes.
        repeats: Runs, whose median is taken.
    """
    copies = [torch.empty_like(x) for x in tensors]
    seconds: list[float] = []
    for _ in range(repeats + 1):
        start = time.process_time()
        for x, out in zip(tensors, copies, strict=True):
            torch.mul(x, 0.5, out=out)
        seconds.append(time.process_time() - start)
    return statistics.median(seconds[1:])


def measure_unit(
    model: nn.Module,
    unit: Unit,
    batches: Sequence[Any],
    *,
    config: ReconstructionConfig,
    rounds: int,
) -> dict[str, Any]:
    """Time our steps and the float block on one unit, in turns.

    Args:
        model: Calibrated model; not changed.
        unit: The unit.
        batches: Minibatches of ``config.batch_size`` images.
        config: Settings, with the steps to run in each round.
        rounds: Turns of both.

    Returns:
        CPU seconds per step of ours and of the float block, their ratio, and
        of one pass over what is quantized.
    """
    own = copy.deepcopy(model)
    session = Session(
        own, Unit(unit.name, own.get_submodule(unit.name)), batches, config
    )
    plain = FloatStep(session)
    session.train()  # warm-up, and it finds how to draw
    plain.run()
    ours: list[float] = []
    limit: list[float] = []
    for _ in range(rounds):
        ours += _step_seconds(session)
        for _ in range(config.steps):
            start = time.process_time()
            plain.run()
            limit.append(time.process_time() - start)
    one_pass = pass_seconds(
        quantized_tensors(session), repeats=rounds * config.steps
    )
    session.close()
    seconds, least = statistics.median(ours), statistics.median(limit)
    return {
        'unit': unit.name,
        'ours': seconds,
        'float': least,
        'ratio': seconds / least,
        'pass': one_pass,
    }


def measure(
    config_path: str,
    checkpoint: str,
    *,
    recipe: str,
    num_images: int,
    num_units: int | None,
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Measure the distance to the limit of some units.

    Args:
        config_path: Config of the float model.
        checkpoint: Float checkpoint.
        recipe: Name of the recipe, or a file that sets its parts.
        num_images: Calibration images.
        num_units: Units to time, evenly spread; None times all.
        steps: Steps of each in a round.
        rounds: Turns of both.
    """
    torch.set_num_threads(1)
    config = run_setup.read_config(config_path)
    settings = run_setup.reconstruction(recipe, steps=steps, skip_below=0.0)
    batches = list(
        run_setup.calibration_batches(
            config, num_images=num_images, batch_size=settings.batch_size
        )
    )
    model = run_setup.prepared(
        run_setup.load_float(config, checkpoint), batches, recipe=recipe
    )
    units = units_of(model, batches[0], settings)
    with run_setup.single_seed():
        rows = [
            measure_unit(model, unit, batches, config=settings, rounds=rounds)
            for unit in spread(units, count=num_units)
        ]
    return {
        'config': config_path,
        'checkpoint': checkpoint,
        'recipe': recipe,
        'minibatch': settings.batch_size,
        'units': rows,
        'target': TARGET,
        'reached': all(row['ratio'] <= TARGET for row in rows),
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result as text."""
    return [
        'milliseconds of CPU per step, one thread, minibatch '
        f'{result["minibatch"]}:',
        f'  {"unit":<28} {"ours":>8} {"float":>8} {"ratio":>8} '
        f'{"a pass":>8} {"passes":>8}',
        *(
            f'  {row["unit"]:<28} {1000 * row["ours"]:8.1f} '
            f'{1000 * row["float"]:8.1f} {row["ratio"]:8.2f} '
            f'{1000 * row["pass"]:8.2f} '
            f'{(row["ours"] - row["float"]) / row["pass"]:8.0f}'
            for row in result['units']
        ),
        f'  target: at most {TARGET} on each',
        '  passes: of reading and writing all that is quantized once, in what '
        'ours takes longer',
    ]
