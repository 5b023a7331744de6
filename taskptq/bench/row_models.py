"""Quantized copies of a table's float model, made like its rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from taskptq.bench.measurement import Measurement, file_digest, read_recipe
from taskptq.bench.table import Row, Table
from taskptq.engine.checkpoint_file import read_checkpoint
from taskptq.engine.contexts import seeded
from taskptq.engine.pipeline import quantize_model
from taskptq.engine.recipe import Recipe
from taskptq.engine.restore import restore_model

WORK_DIR = Path('work_dirs') / 'row_models'


def open_measurement(
    table: Table, *, device: str | None = None
) -> Measurement:
    """Load a table's float model and data, with a separate work folder.

    Args:
        table: The table.
        device: ``cpu`` or ``cuda``; None uses a GPU if there is one.
    """
    return Measurement(
        table, device=device, work_dir=WORK_DIR / f'{table.name}_{table.split}'
    )


def row_of(table: Table, name: str, *, seed: int = 0) -> Row:
    """Return a row by its short name; the table need not have it.

    Args:
        table: Table with the row's settings, or with those of every row.
        name: ``<bits>_<method>``, e.g. ``w4a4-8_drd``; a ``+`` in the
            method's name may be a ``-``, as in its recipe's.
        seed: Seed of the row.

    Raises:
        ValueError: If the name has another form, or the row is evaluated like
            published code.
    """
    bits, _, method = name.partition('_')
    if not method:
        raise ValueError(
            f'row {name!r}: write <bits>_<method>, e.g. w4a4-8_mse'
        )
    for row in table.rows():
        known = (row.method, row.method.replace('+', '-'))
        if row.bits == bits and row.seed == seed and method in known:
            break
    else:
        row = Row(
            method=method,
            bits=bits,
            seed=seed,
            recipe=table.recipe_name(bits, method=method),
            rewrites=table.rewrites,
            reconstruction=table.reconstruction,
        )
    if row.published:
        raise ValueError(
            f'row {name!r} is evaluated like published code, which no '
            'quantized file can hold: name the plain method'
        )
    return row


def recipe_of(
    measurement: Measurement, row: Row, *, keep_float: Sequence[str] = ()
) -> Recipe:
    """Return a row's recipe, with more layers left float.

    Args:
        measurement: Measurement of its table.
        row: The row.
        keep_float: Name patterns, in addition to those of the row.
    """
    recipe = read_recipe(row, images=measurement.images(row))
    patterns = (*recipe.qconfig.keep_float, *keep_float)
    return replace(
        recipe, qconfig=replace(recipe.qconfig, keep_float=patterns)
    )


def quantized_copy(
    measurement: Measurement, row: Row, *, reuse: bool = False
) -> nn.Module:
    """Quantize a copy of the float model; its file stays in ``work_dirs``.

    Args:
        measurement: Measurement of its table.
        row: The row.
        reuse: Use the existing file if it has the same recipe and the same
            float checkpoint.
    """
    recipe = recipe_of(measurement, row)
    model = copy.deepcopy(measurement.model)
    digest = file_digest(measurement.table.checkpoint)
    folder = measurement.work_dir / row.name.replace(' ', '_')
    out = folder / 'quantized.pth'
    if reuse and out.is_file():
        payload = read_checkpoint(out)
        if (
            payload['recipe'] == recipe.to_dict()
            and payload['meta'].get('float_sha256') == digest
        ):
            restore_model(payload, model)
            return model
    quantize_model(
        model,
        measurement.batches(measurement.images(row)),
        recipe=recipe,
        work_dir=folder,
        out=out,
        meta={'float_sha256': digest},
    )
    return model


def evaluate(
    measurement: Measurement, model: nn.Module, *, seed: int
) -> dict[str, Any]:
    """Return ``value`` and ``metrics`` of a model, as in a row."""
    with seeded(seed):
        metrics, _ = measurement.evaluate(model)
    return measurement.scores(metrics)


def column_values(
    scores: Mapping[str, Any], columns: Mapping[str, str]
) -> dict[str, float | None]:
    """Return a row's cells by header; None for missing metrics.

    Args:
        scores: Scores with ``metrics``.
        columns: Header -> key of ``metrics``.
    """
    return {
        title: scores['metrics'].get(key) for title, key in columns.items()
    }
