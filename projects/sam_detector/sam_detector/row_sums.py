"""Sums of the rows of quantized attentions, by row of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from taskptq.analysis.distribution import row_sum_errors
from taskptq.engine.pipeline import run_batch
from taskptq.version import __version__

from .experiment import Experiment, current_commit
from .key_comparison import Copies, compact_json
from .mask_comparison import quantized_copy

__all__ = ['measure_row_sums', 'write_row_sums']

Sums = dict[str, dict[str, dict[str, float]]]


def measure_row_sums(
    experiment: Experiment,
    rows: Sequence[str],
    *,
    num_images: int,
    work_dir: Path,
    seed: int = 0,
    device: str = 'cpu',
) -> Sums:
    """Measure how far rows of quantized attentions are from summing to 1.

    The images are the first calibration images of the table's rows with the
    same seed, prompted by the detector.

    Args:
        experiment: The table.
        rows: ``<bits>_<method>`` of the quantized models.
        num_images: Number of images.
        work_dir: Folder of the quantized files.
        seed: Seed of the rows.
        device: Device of the models.

    Returns:
        Row -> result of ``row_sum_errors``.

    Raises:
        ValueError: If a row has no recipe.
    """
    for row in rows:
        experiment.settings(row)
    model = experiment.float_model(device)
    images = replace(experiment.images(seed), num_images=num_images)
    batches = Copies(list(experiment.batches(images)))
    return {
        row: row_sum_errors(
            quantized_copy(
                model, experiment, row, seed=seed, work_dir=work_dir
            ),
            batches,
            forward=run_batch,
        )
        for row in rows
    }


def write_row_sums(
    found: Mapping[str, Any],
    out: Path,
    *,
    experiment: Experiment,
    command: str,
    num_images: int,
    seed: int,
) -> None:
    """Write the measurement, with everything needed to repeat it.

    Args:
        found: Result of :func:`measure_row_sums`.
        out: JSON file.
        experiment: The table.
        command: Command line.
        num_images: Number of images.
        seed: Seed of the rows.
    """
    content = {
        'model': experiment.model,
        'dataset': experiment.dataset,
        'checkpoint': experiment.checkpoint,
        'command': command,
        'commit': current_commit(),
        'seeds': {'rows': seed},
        'num_images': num_images,
        'environment': {
            'taskptq': __version__,
            'torch': str(torch.__version__),
        },
        'row_sum_errors': found,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(compact_json(content) + '\n', encoding='utf-8')
