"""Times of layers, for a choice of bits under a budget of latency."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskptq.calibration.images import constant_images
from taskptq.core.distributed import gathered
from taskptq.engine.precision_problem import Calibrated
from taskptq.engine.recipe import Recipe
from taskptq.export.layer_times import measure_layers
from taskptq.export.runtime import OnnxFileError, runtime_package

__all__ = ['TABLE_FILE', 'check_runtime', 'read_table', 'with_latency']

logger = logging.getLogger('taskptq')

TABLE_FILE = 'latency_table.json'
# A table of ten thousand layers has about 1 MB.
MAX_BYTES = 16 << 20


def check_runtime() -> None:
    """Refuse to measure without a runtime.

    Raises:
        ValueError: If onnx or onnxruntime is not installed.
    """
    try:
        for package in ('onnx', 'onnxruntime'):
            runtime_package(package)
    except OnnxFileError as error:
        raise ValueError(
            'a budget of latency needs measured times of the layers: give '
            f'them (--latency-table, or latency_table in the recipe); {error}'
        ) from error


def read_table(path: str | Path) -> dict[str, Any]:
    """Return the times in a file; the recipe checks what is in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a JSON object.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f'{path} is too large for a latency table')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not JSON: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(
            f'{path} is no latency table: give a JSON object with float_ms '
            'and layers'
        )
    return content


def with_latency(calibrated: Calibrated, recipe: Recipe) -> Recipe:
    """Return the recipe with a latency table, if its budget needs one.

    Args:
        calibrated: Model and data; the first rank's times count.
        recipe: Recipe with ``mixed_precision``.

    Raises:
        ValueError: If nothing is installed that measures.
    """
    config = recipe.mixed_precision
    if (
        config is None
        or 'latency' not in config.budget
        or config.latency_table is not None
    ):
        return recipe
    check_runtime()
    batch = calibrated.batches[0]
    measured = measure_layers(
        calibrated.model,
        batch,
        forward=calibrated.forward,
        num_images=max(1, constant_images([batch])[1]),
    )
    table = gathered(measured)[0]
    logger.info(
        'Timed %d layers in %s on %d thread: %.3g ms in integers, %.3g ms in '
        'floats for one image; other products are not counted',
        len(table['layers']),
        table['runtime'],
        table['threads'],
        sum(times['8x8'] for times in table['layers'].values()),
        table['float_ms'],
    )
    return replace(
        recipe, mixed_precision=replace(config, latency_table=table)
    )
