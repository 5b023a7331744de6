"""Rows of the model zoo's files: known metrics, and what a coder takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from taskptq.bench.recipe_rows import read_file, row_key, write_json
from taskptq.bench.table import Table
from taskptq.engine.checkpoint_file import read_checkpoint

__all__ = ['ZOO', 'add_zoo_rows', 'zoo_rows']

ZOO = Path('configs') / 'zoo.json'
FLOAT_BYTES = 4


def zoo_rows(
    table: Table, *, zoo: Path, coded: Callable[[Path], Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each of the model's files in the repository.

    Args:
        table: Of the model.
        zoo: The zoo's list of files.
        coded: Returns what the coder makes of a file.
    """
    state = read_checkpoint(Path(table.checkpoint))
    state = state.get('state_dict', state)
    values = sum(tensor.numel() for tensor in state.values())
    for entry in json.loads(zoo.read_text(encoding='utf-8')).values():
        if entry['config'] != table.config or not entry['committed']:
            continue
        found = coded(Path(entry['file']))
        yield {
            'recipe': '+'.join(entry['recipe']),
            'seed': entry['seed'],
            'images': entry['num_images'],
            'value': entry['metrics'].get(table.metric, entry['value']),
            'metrics': entry['metrics'],
            'cpu_seconds': None,
            'file_bytes': entry['bytes'],
            **found,
            'ratio': round(FLOAT_BYTES * values / found['coded_bytes'], 3),
            'zeros': None,
            'sha256': entry['sha256'],
            'command': entry['command'],
            'commit': entry['commit'],
        }


def add_zoo_rows(
    table: Table,
    path: Path,
    *,
    coded: Callable[[Path], Mapping[str, Any]],
    zoo: Path = ZOO,
) -> None:
    """Add or replace the rows of the model's files in the zoo.

    Args:
        table: Of the model, with measured rows of its own.
        path: File of rows.
        coded: See :func:`zoo_rows`.
        zoo: See there.
    """
    stored = read_file(path)
    if 'float' not in stored:
        full = read_file(table.results)
        first = full['float']
        first = first[0] if isinstance(first, list) else first
        stored = {
            'model': table.model,
            'dataset': table.dataset,
            'metric': table.metric,
            'float': {
                key: first.get(key)
                for key in ('config', 'checkpoint', 'value', 'sha256')
            },
            'environment': full['environment'],
            'rows': [],
        }
    rows = list(zoo_rows(table, zoo=zoo, coded=coded))
    keys = {row_key(row) for row in rows}
    kept = [row for row in stored['rows'] if row_key(row) not in keys]
    write_json(path, {**stored, 'rows': [*kept, *rows]})
