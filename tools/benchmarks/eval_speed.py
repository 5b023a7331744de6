"""Wall time of a fake-quantized evaluation against the float one."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks import run_setup
from taskptq.reconstruction import freeze

TARGET = 1.6


@torch.no_grad()
def one_pass(model: nn.Module, batches: Sequence[Any]) -> float:
    """Return the seconds of one pass over all batches.

    Like the test loop, a pass does preprocessing, forward and decoding.
    """
    start = time.perf_counter()
    for batch in batches:
        model.test_step(batch)
    return time.perf_counter() - start


def interleaved(
    models: dict[str, nn.Module], batches: Sequence[Any], *, repeats: int
) -> dict[str, list[float]]:
    """Time models in turns, so that load from outside affects all equally.

    Args:
        models: Name -> model.
        batches: Collated batches.
        repeats: Timed passes of each, after one warm-up pass.

    Returns:
        Name -> seconds of each pass.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(repeats + 1):
        for name, model in models.items():
            taken = one_pass(model, batches)
            if turn:
                seconds[name].append(taken)
    return seconds


def measure(
    config_path: str,
    checkpoint: str,
    *,
    recipe: str,
    repeats: int,
    limit: int | None,
    calibration_images: int,
) -> dict[str, Any]:
    """Measure both models.

    Args:
        config_path: Config of the float model.
        checkpoint: Float checkpoint.
        recipe: Name of the recipe, or a file that sets its parts.
        repeats: Timed passes of each.
        limit: Images of the test set; None takes all.
        calibration_images: Images to calibrate with.
    """
    config = run_setup.read_config(config_path)
    batch_size = config.test_dataloader.batch_size
    model = run_setup.load_float(config, checkpoint)
    images = run_setup.calibration_batches(
        config, num_images=calibration_images, batch_size=batch_size
    )
    quantized = run_setup.prepared(copy.deepcopy(model), images, recipe=recipe)
    freeze(quantized)
    batches = run_setup.test_batches(
        config, batch_size=batch_size, limit=limit
    )
    seconds = interleaved(
        {'float': model, 'quantized': quantized}, batches, repeats=repeats
    )
    medians = {k: statistics.median(v) for k, v in seconds.items()}
    return {
        'config': config_path,
        'checkpoint': checkpoint,
        'recipe': recipe,
        'num_images': sum(len(batch['inputs']) for batch in batches),
        'batch_size': batch_size,
        'seconds': seconds,
        'median_seconds': medians,
        'ratio': medians['quantized'] / medians['float'],
        'target': TARGET,
        'reached': medians['quantized'] / medians['float'] <= TARGET,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result as text."""
    medians = result['median_seconds']
    return [
        f'evaluation of {result["num_images"]} images, medians of '
        f'{len(result["seconds"]["float"])} passes in turns:',
        f'  float      {medians["float"]:.2f} s',
        f'  quantized  {medians["quantized"]:.2f} s',
        f'  ratio      {result["ratio"]:.2f} (target at most {TARGET})',
    ]
