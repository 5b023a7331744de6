"""Measure the rows of a table that its results file lacks.

    python tools/run_table.py configs/<family>/<model>_<dataset>.table.yml
    taskptq bench coverage    # what is covered of the hosts' own configs
    taskptq bench zoo         # the zoo's files, run again and compared
    taskptq bench robustness CONFIG FLOAT.pth Q.pth    # under noise

The results file ``configs/<family>/results/<model>_<dataset>.json`` is
written after every row, and an interrupted row goes on where it stopped, so
a table may be stopped and started at will. Several processes may work on one
table: each takes rows that no other is at. ``--split val`` is for choosing
settings: its results go to work_dirs and into no table.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from filelock import FileLock, Timeout
from mmengine.logging import print_log

from taskptq.bench.markdown import render_results
from taskptq.bench.measurement import WORK_DIR, Measurement, file_digest
from taskptq.bench.results import (
    Results,
    float_rows,
    load_results,
    put_row,
    row_name,
    save_results,
)
from taskptq.bench.table import SPLITS, Row, Table, read_table
from taskptq.bench.targets import describe, evaluate_targets
from taskptq.cli.numbers import minutes
from taskptq.cli.projects import load_projects

FLOAT = 'float'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        description='Measure a table of results',
        epilog='taskptq bench coverage, zoo and robustness are commands of '
        'their own: see their --help',
    )
    parser.add_argument('table', help='file *.table.yml')
    parser.add_argument(
        '--rows',
        help='regular expression: only rows in whose name '
        '"METHOD BITS SEED" it is found, e.g. "qdrop w2a4"',
    )
    parser.add_argument(
        '--list', action='store_true', help='show the rows and stop'
    )
    parser.add_argument(
        '--redo',
        action='store_true',
        help='measure rows again that the results file has',
    )
    parser.add_argument(
        '--max-minutes',
        type=minutes,
        help='start no further row after so many minutes',
    )
    parser.add_argument(
        '--split',
        choices=SPLITS,
        help="split to evaluate instead of the table's",
    )
    parser.add_argument('--out', help='results file (default: see above)')
    parser.add_argument(
        '--device', help='cpu or cuda (default: a GPU if there is one)'
    )
    return parser.parse_args(argv)


def results_path(table: Table, args: argparse.Namespace) -> Path:
    """Return the results file to read and write."""
    if args.out is not None:
        return Path(args.out)
    if args.split not in (None, table.split):
        return WORK_DIR / f'{table.name}.{args.split}.json'
    return table.results


def open_results(table: Table, path: Path) -> Results:
    """Read the results file, or start one.

    Args:
        table: The table, with the split that is evaluated.
        path: Results file.

    Raises:
        ValueError: If the file is of another float checkpoint or split.
    """
    results = load_results(path)
    if results is None:
        results = {
            'model': table.model,
            'dataset': table.dataset,
            'split': table.split,
            'metric': table.metric,
            'float': None,
            'rows': [],
            'targets': [],
            'environment': {},
        }
    for key in ('model', 'dataset', 'split', 'metric'):
        if results[key] != getattr(table, key):
            raise ValueError(
                f'{path} has {key} {results[key]!r}, the table '
                f'{getattr(table, key)!r}: move the file away to start anew'
            )
    for row in float_rows(results):
        if row.get('sha256') not in (None, file_digest(table.checkpoint)):
            raise ValueError(
                f'{path} was measured with another {table.checkpoint}: move '
                'the file away to start anew'
            )
    return results


def lacking(rows: list[Row], results: Results, *, redo: bool) -> list[Row]:
    """Return the rows to measure; those that look outdated are named.

    Args:
        rows: Rows asked for.
        results: What is there.
        redo: Measure them all.
    """
    measured = {row_name(row): row for row in results['rows']}
    for row in rows:
        old = measured.get(row.name, {}).get('steps')
        asked = row.reconstruction.get('steps')
        if None not in (old, asked) and old != asked and not redo:
            print_log(
                f'{row.name} was measured with {old} steps, the table asks '
                f'for {asked}: --redo measures it again',
                logger='current',
                level=logging.WARNING,
            )
    return [row for row in rows if redo or row.name not in measured]


def show_rows(rows: list[Row], results: Results) -> str:
    """Return a line for each row: its value, or that it is lacking."""
    values = {row_name(row): row['value'] for row in results['rows']}
    return '\n'.join(
        f'{row.name:24} {values.get(row.name, "lacking")}' for row in rows
    )


def run(table: Table, args: argparse.Namespace) -> list[str]:
    """Measure what is lacking.

    Args:
        table: The table.
        args: Result of :func:`parse_args`.

    Returns:
        Names of the rows that could not be measured.
    """
    start = time.monotonic()
    path = results_path(table, args)
    if args.split is not None:
        table = dataclasses.replace(table, split=args.split)
    results = open_results(table, path)
    rows = table.rows(args.rows)
    if args.list:
        print(show_rows(rows, results))
        return []
    todo = lacking(rows, results, redo=args.redo)
    again = args.redo and args.rows and re.search(args.rows, FLOAT)
    failed = []
    if todo or again or not results['float']:
        measurement = Measurement(table, device=args.device)
        environment = measurement.environment()
        if again or not results['float']:
            measured = measurement.measure_float()
            # Not `results`: what another process measured meanwhile must
            # count as new to measure_rows.
            with updated(table, path) as current:
                current |= {'float': measured, 'environment': environment}
            print_log(f'float {measured["value"]}', logger='current')
        failed = measure_rows(
            todo,
            measurement=measurement,
            results=results,
            path=path,
            deadline=deadline(start, args.max_minutes),
        )
    with updated(table, path):
        pass  # The targets may have changed.
    return failed


def deadline(start: float, minutes: float | None) -> float:
    """Return the time of ``time.monotonic()`` after which nothing starts."""
    return float('inf') if minutes is None else start + 60 * minutes


def measure_rows(
    rows: list[Row],
    *,
    measurement: Measurement,
    results: Results,
    path: Path,
    deadline: float,
) -> list[str]:
    """Measure rows one after another, writing after each.

    A row whose settings fail is logged and left lacking; one that another
    process is at, or has measured meanwhile, is left to it.

    Args:
        rows: Rows to measure.
        measurement: The table's.
        results: What was there when the rows were chosen.
        path: Results file.
        deadline: See :func:`deadline`.

    Returns:
        Names of the rows that failed.
    """
    failed = []
    table = measurement.table
    order = [row.name for row in table.rows()]
    known = {row_name(row): row for row in results['rows']}
    for number, row in enumerate(rows, start=1):
        if time.monotonic() > deadline:
            print_log(
                f'Out of time: {len(rows) - number + 1} rows are left '
                'for the next run.',
                logger='current',
            )
            break
        try:
            with row_lock(measurement.work_dir, row):
                if changed(row, known, open_results(table, path)):
                    continue
                measured = measurement.measure(row)
                with updated(table, path) as results:
                    results['environment'] = measurement.environment()
                    put_row(results, measured, order=order)
        except Timeout:
            print_log(
                f'{row.name}: another process is at it', logger='current'
            )
            continue
        except (RuntimeError, ValueError, OSError):
            logging.getLogger(__name__).exception('%s failed', row.name)
            failed.append(row.name)
            continue
        print_log(
            f'[{number}/{len(rows)}] {row.name}: {measured["value"]} '
            f'(calibration {measured["calibration_seconds"]:.0f} s, '
            f'reconstruction {measured["reconstruction_seconds"]:.0f} s, '
            f'evaluation {measured["eval_seconds"]:.0f} s)',
            logger='current',
        )
    return failed


def row_lock(folder: Path, row: Row) -> FileLock:
    """Return the lock that who measures a row holds; it never waits."""
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f'{row.name.replace(" ", "_")}.lock', timeout=0)


def changed(row: Row, known: Mapping[str, Any], results: Results) -> bool:
    """Whether a row was measured after ``known`` was read."""
    return any(
        row_name(found) == row.name and found != known.get(row.name)
        for found in results['rows']
    )


@contextmanager
def updated(table: Table, path: Path) -> Iterator[Results]:
    """Change the results file while no other process does.

    Args:
        table: The table.
        path: Results file.

    Yields:
        What it holds now; written with the targets brought up to date.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f'.{path.name}.lock')):
        results = open_results(table, path)
        yield results
        results['targets'] = evaluate_targets(table.targets, results)
        save_results(results, path)


def main(argv: list[str] | None = None) -> None:
    """Measure one table.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If the table is refused (the reason is one sentence), or
            rows failed.
    """
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ['coverage']:
        from taskptq.cli import coverage

        coverage.main(given[1:])
        return
    if given[:1] == ['zoo']:
        from taskptq.cli.zoo import main as run_zoo

        run_zoo(given[1:])
        return
    if given[:1] == ['robustness']:
        from taskptq.cli.robustness import main as run_robustness

        run_robustness(given[1:])
        return
    args = parse_args(argv)
    load_projects()
    try:
        table = read_table(args.table)
        failed = run(table, args)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if args.list:
        return
    results = load_results(results_path(table, args)) or {}
    print(render_results(results, columns=table.columns))
    for record in results['targets']:
        print(describe(record))
    if failed:
        raise SystemExit(f'{len(failed)} rows failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
