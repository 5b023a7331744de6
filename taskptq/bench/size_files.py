"""Rows of files that were measured elsewhere: the zoo's, and the tables'."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from taskptq.bench.peers import is_peer
from taskptq.bench.recipe_rows import read_file, row_key, write_json
from taskptq.bench.table import Table
from taskptq.engine.checkpoint_file import read_checkpoint

__all__ = ['ZOO', 'add_zoo_rows', 'table_rows', 'zoo_rows']

ZOO = Path('configs') / 'zoo.json'
FLOAT_BYTES = 4
# Grids of weights, with inputs of 8 bits.
BITS = re.compile(r'w[\d.]+a8(_[a-z]+)?', re.ASCII)


def zoo_rows(
    table: Table, *, zoo: Path, coded: Callable[[Path], Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield a row for each of the model's files in the repository.

    Args:
        table: Of the model.
        zoo: The zoo's list of files.
        coded: Returns what the coder makes of a file.
    """
    values = num_values(table)
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


def table_rows(table: Table) -> Iterator[dict[str, Any]]:
    """Yield a row for each file that the model's own table has measured.

    Those with inputs of 8 bits, which compare with files for a size. They
    were not kept, so that only their dense size is known.

    Args:
        table: Of the model.
    """
    values = num_values(table)
    for row in read_file(table.results)['rows']:
        if not BITS.fullmatch(row['bits']) or is_peer(row['method']):
            continue
        yield {
            'recipe': f'{row["bits"]}_{row["method"]}',
            'seed': row['seed'],
            'images': table.calibration.get('num_images'),
            'value': row['value'],
            'metrics': row['metrics'],
            'cpu_seconds': None,
            'file_bytes': row['file_bytes'],
            'coded_bytes': None,
            'weights': None,
            'ratio': round(FLOAT_BYTES * values / row['file_bytes'], 3),
            'zeros': None,
            'command': row['command'],
            'commit': row['commit'],
        }


def num_values(table: Table) -> int:
    """Return how many parameters and buffers the float model has."""
    state = read_checkpoint(Path(table.checkpoint))
    state = state.get('state_dict', state)
    return sum(tensor.numel() for tensor in state.values())


def add_zoo_rows(
    table: Table,
    path: Path,
    *,
    coded: Callable[[Path], Mapping[str, Any]],
    zoo: Path = ZOO,
) -> None:
    """Add or replace the rows of files in the zoo and in the model's table.

    What was measured with a coder has precedence.

    Args:
        table: Of the model, with measured rows of its own.
        path: File of rows.
        coded: See :func:`zoo_rows`.
        zoo: See :func:`zoo_rows`.
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
    rows = {row_key(row): row for row in table_rows(table)}
    coded_rows = [row for row in stored['rows'] if row['coded_bytes']]
    for row in [*coded_rows, *zoo_rows(table, zoo=zoo, coded=coded)]:
        rows[row_key(row)] = row
    write_json(path, {**stored, 'rows': list(rows.values())})
