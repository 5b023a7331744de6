"""Rows of a table's data that are named by their recipes alone."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.measurement import Measurement
from taskptq.bench.table import Table
from taskptq.core.atomic import write_atomically
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.contexts import seeded
from taskptq.engine.pipeline import quantize_model
from taskptq.engine.recipe import Recipe
from taskptq.engine.recipe_source import read_recipe

__all__ = [
    'measure_recipe',
    'measure_rows',
    'read_file',
    'recipe_of',
    'row_key',
    'write_json',
]

# What one row adds to its entries: (report, quantized file) -> entries.
Extra = Callable[[Mapping[str, Any], Path], Mapping[str, Any]]


def recipe_of(name: str, *, images: CalibrationConfig) -> Recipe:
    """Return the checked recipe of a name."""
    parts = read_recipe(name)
    return Recipe.from_config(
        parts['qconfig'],
        reconstruction=parts.get('reconstruction'),
        loss=parts.get('loss'),
        rewrites=parts.get('rewrites'),
        calibration=images.recipe(),
        seed=images.seed,
    )


def measure_recipe(
    measurement: Measurement,
    name: str,
    *,
    images: CalibrationConfig,
    folder: Path,
    extra: Extra,
) -> dict[str, Any]:
    """Quantize a copy of the float model, and evaluate it.

    Args:
        measurement: Float model and data.
        name: Name of the recipe.
        images: Calibration images, and the seed.
        folder: Temporary folder of the file and its reports.
        extra: Returns further entries of the row.
    """
    model = copy.deepcopy(measurement.model)
    recipe = recipe_of(name, images=images)
    start = time.process_time()
    report = quantize_model(
        model,
        measurement.batches(images),
        recipe=recipe,
        work_dir=folder,
        resume=False,
    )
    seconds = time.process_time() - start
    with seeded(images.seed):
        metrics, _ = measurement.evaluate(model)
    return {
        'recipe': name,
        'seed': images.seed,
        'images': images.num_images,
        **measurement.scores(metrics),
        'cpu_seconds': round(seconds, 1),
        'file_bytes': report['file_bytes'],
        **extra(report, folder / 'quantized.pth'),
        'commit': measurement.commit,
    }


def measure_rows(
    table: Table,
    path: Path,
    *,
    tasks: Sequence[tuple[str, CalibrationConfig]],
    measure: Callable[[Measurement, str, CalibrationConfig], dict[str, Any]],
) -> None:
    """Measure rows and add each to a file when it is done.

    Rows of the same recipe, seed and number of images are replaced.

    Args:
        table: Of the model.
        path: File of rows; its folder is made.
        tasks: Recipe and images of each row.
        measure: Measures one.
    """
    measurement = Measurement(table)
    stored = read_file(path)
    if 'float' not in stored:
        found = measurement.measure_float()
        stored = {
            'model': table.model,
            'dataset': table.dataset,
            'metric': table.metric,
            'float': {
                key: found[key]
                for key in ('config', 'checkpoint', 'value', 'sha256')
            },
            'environment': measurement.environment(),
            'rows': stored['rows'],
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, images in tasks:
        row = measure(measurement, name, images)
        key = row_key(row)
        stored['rows'] = [old for old in stored['rows'] if row_key(old) != key]
        stored['rows'].append(row)
        write_json(path, stored)


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row from others of its file."""
    return row['recipe'], row['seed'], row['images']


def read_file(path: Path) -> dict[str, Any]:
    """Return the rows measured so far."""
    if not path.is_file():
        return {'rows': []}
    stored: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    return stored


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file of rows atomically."""
    text = json.dumps(content, indent=1) + '\n'
    write_atomically(path, lambda file: file.write(text.encode()))
