"""Steps per second of our reconstruction and of a plain loop."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from typing import Any

from torch import nn

from benchmarks import run_setup
from benchmarks.reference_loop import ReferenceLoop
from benchmarks.sessions import Session, units_of
from taskptq.engine.pipeline import run_batch
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction import reconstruct
from taskptq.reconstruction.config import ReconstructionConfig

TARGET = 3.0


def spread(units: Sequence[Unit], *, count: int | None) -> list[Unit]:
    """Pick units evenly over the model's depth, including both ends."""
    if count is None or count >= len(units):
        return list(units)
    if count == 1:
        return [units[len(units) // 2]]
    last = len(units) - 1
    return [units[round(i * last / (count - 1))] for i in range(count)]


def measure_unit(
    model: nn.Module,
    unit: Unit,
    batches: Sequence[Any],
    *,
    config: ReconstructionConfig,
    rounds: int,
    reference_steps: int,
) -> dict[str, Any]:
    """Time both loops on one unit, in turns.

    Args:
        model: Calibrated model; not changed.
        unit: The unit.
        batches: Minibatches of ``config.batch_size`` images.
        config: Settings, with the steps to run in each round.
        rounds: Turns of both loops.
        reference_steps: Steps of the plain loop in each round.

    Returns:
        Seconds per step of ours, and of fetching and the rest in the plain
        loop.
    """
    own = copy.deepcopy(model)
    session = Session(
        own, Unit(unit.name, own.get_submodule(unit.name)), batches, config
    )
    reference = ReferenceLoop(
        model,
        name=unit.name,
        num_calls=session.num_calls,
        batches=batches,
        config=config,
    )
    ours: list[float] = []
    fetches: list[float] = []
    steps: list[float] = []
    reference.step()  # warm-up
    for _ in range(rounds):
        result = session.train()
        ours.append(result.seconds / max(result.steps, 1))
        for _ in range(reference_steps):
            fetch, step = reference.step()
            fetches.append(fetch)
            steps.append(step)
    session.close()
    return {
        'unit': unit.name,
        'ours': statistics.median(ours),
        'reference_fetch': statistics.median(fetches),
        'reference_step': statistics.median(steps),
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
    """Measure both loops.

    Args:
        config_path: Config of the float model.
        checkpoint: Float checkpoint.
        recipe: Name of the recipe, or a file that sets its parts.
        num_images: Calibration images.
        num_units: Units to time, evenly spread; None times all.
        steps: Steps of our loop per round; the plain loop does a third.
        rounds: Turns of both loops.
    """
    config = run_setup.read_config(config_path)
    full = run_setup.reconstruction(recipe)
    short = run_setup.reconstruction(recipe, steps=steps)
    lazy = run_setup.calibration_batches(
        config, num_images=num_images, batch_size=full.batch_size
    )
    batches = list(lazy)
    model = run_setup.prepared(
        run_setup.load_float(config, checkpoint), batches, recipe=recipe
    )
    units = units_of(model, batches[0], short)
    with run_setup.single_seed():
        rows = [
            measure_unit(
                model,
                unit,
                batches,
                config=short,
                rounds=rounds,
                reference_steps=max(2, steps // 3),
            )
            for unit in spread(units, count=num_units)
        ]
    whole = reconstruct(
        model,
        batches,
        run_setup.reconstruction(recipe, steps=1),
        forward=run_batch,
        progress=False,
    )
    overhead = whole.seconds - sum(unit.seconds for unit in whole.units)
    return {
        'config': config_path,
        'checkpoint': checkpoint,
        'recipe': recipe,
        'num_images': num_images,
        'minibatch': full.batch_size,
        'steps_per_unit': full.steps,
        'num_units': len(units),
        'num_forwards': whole.num_forwards,
        'seconds_per_step': rows,
        'capture_seconds': overhead,
        **summarize(
            rows,
            overhead=overhead,
            num_units=len(units),
            steps=full.steps,
            fetches_per_unit=-(-num_images // full.batch_size),
        ),
        'target': TARGET,
    }


def summarize(
    rows: Sequence[dict[str, Any]],
    *,
    overhead: float,
    num_units: int,
    steps: int,
    fetches_per_unit: int,
) -> dict[str, Any]:
    """Convert seconds to steps per second of a whole reconstruction.

    Args:
        rows: Seconds per step of each timed unit.
        overhead: Seconds that our loop spends on captures, for all units.
        num_units: Units of the model.
        steps: Steps of each unit in the full recipe.
        fetches_per_unit: Minibatches that hold all calibration images.
    """
    ours = statistics.mean(row['ours'] for row in rows)
    ours += overhead / (num_units * steps)
    fetch = statistics.mean(row['reference_fetch'] for row in rows)
    step = statistics.mean(row['reference_step'] for row in rows)
    cached = step + fetch * fetches_per_unit / steps
    return {
        'steps_per_second': {
            'ours': 1 / ours,
            'reference': 1 / (fetch + step),
            'reference_fetching_once_per_unit': 1 / cached,
        },
        'ratio': (fetch + step) / ours,
        'ratio_fetching_once_per_unit': cached / ours,
        'reached': (fetch + step) / ours >= TARGET,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result as text."""
    rate = result['steps_per_second']
    rows = [
        f'  {row["unit"]:<28} {1000 * row["ours"]:8.0f} '
        f'{1000 * row["reference_fetch"]:8.0f} '
        f'{1000 * row["reference_step"]:8.0f}'
        for row in result['seconds_per_step']
    ]
    return [
        f'milliseconds per step, minibatch {result["minibatch"]}:',
        f'  {"unit":<28} {"ours":>8} {"fetch":>8} {"step":>8}',
        *rows,
        f'steps per second over a whole run ({result["num_units"]} units, '
        f'{result["steps_per_unit"]} steps each, {result["num_images"]} '
        f'images, {result["capture_seconds"]:.1f} s of captures in ours):',
        f'  ours                                {rate["ours"]:.2f}',
        f'  plain loop                          {rate["reference"]:.2f}',
        '  plain loop, fetching once per unit  '
        f'{rate["reference_fetching_once_per_unit"]:.2f}',
        f'  ratio {result["ratio"]:.2f} (target at least {TARGET}); '
        f'{result["ratio_fetching_once_per_unit"]:.2f} against the plain '
        'loop that fetches once per unit',
    ]
