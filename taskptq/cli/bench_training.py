"""Train and test the models of a table that its results file lacks.

    python tools/run_training.py configs/<family>/<name>.train.yml

Each run is one ``tools/train.py`` and one ``tools/test.py``; the results file
``configs/<family>/results/<name>.train.json`` is written after every run, and
an interrupted training goes on from its last checkpoint; a finished one whose
test was interrupted is only tested.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch

from taskptq.bench.measurement import current_commit, describe_environment
from taskptq.bench.results import Results, load_results, save_results
from taskptq.bench.training_table import (
    SUFFIX,
    Run,
    TrainingTable,
    describe_training_target,
    evaluate_training_targets,
    read_training_table,
    render_training,
)
from taskptq.cli.numbers import minutes
from taskptq.cli.projects import load_projects
from taskptq.engine.checkpoint_file import TRAINING_KEY, read_checkpoint

WORK_DIR = Path('work_dirs') / 'training'
LAST = 'last_checkpoint'
# Times of a training that came to its end, in its folder.
FINISHED = 'training.json'
# The test follows; what training costs is measured without one.
NO_VALIDATION = 'train_cfg.val_begin=1000000000'
STATISTICS = ('running_mean', 'running_var', 'num_batches_tracked')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        description='Train and test the models of a table'
    )
    parser.add_argument('table', help=f'file *{SUFFIX}')
    parser.add_argument(
        '--runs',
        help='regular expression: only runs in whose name '
        '"VARIANT SEED" it is found, e.g. "^grid-um 0"',
    )
    parser.add_argument(
        '--list', action='store_true', help='show the runs and stop'
    )
    parser.add_argument(
        '--redo',
        action='store_true',
        help='train runs again that the results file has',
    )
    parser.add_argument(
        '--max-minutes',
        type=minutes,
        help='start no further run after so many minutes',
    )
    parser.add_argument(
        '--train-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='settings to override while training',
    )
    return parser.parse_args(argv)


def work_dir_of(table: TrainingTable, run: Run) -> Path:
    """Return the folder of a run."""
    return WORK_DIR / table.name / f'{run.variant}_seed{run.seed}'


def call(words: Sequence[str]) -> tuple[float, float]:
    """Run a Python tool.

    Args:
        words: File and arguments.

    Returns:
        Wall time, and processor time of it and its workers, in seconds.

    Raises:
        RuntimeError: If it fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *words], check=False)
    if done.returncode:
        raise RuntimeError(
            f'{shlex.join(["python", *words])} ended with '
            f'{done.returncode}: see its output above'
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = (
        after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    )
    return time.perf_counter() - start, processor


def train(
    table: TrainingTable, run: Run, *, options: Sequence[str], fresh: bool
) -> dict[str, Any]:
    """Train a run.

    Args:
        table: The table.
        run: The run.
        options: ``--cfg-options`` of ``tools/train.py``.
        fresh: Don't go on from a checkpoint of an interrupted training.

    Returns:
        ``train_seconds`` and ``train_cpu_seconds``, and a note if they are
        those of the last part only.
    """
    folder = work_dir_of(table, run)
    finished = folder / FINISHED
    if finished.is_file() and not fresh:
        return dict(json.loads(finished.read_text(encoding='utf-8')))
    finished.unlink(missing_ok=True)
    words = [
        '-m',
        'taskptq.cli.train',
        run.config,
        '--work-dir',
        str(folder),
        '--seed',
        str(run.seed),
    ]
    resumed = (folder / LAST).is_file() and not fresh
    if resumed:
        words.append('--resume')
    words += ['--cfg-options', NO_VALIDATION, *options]
    wall, processor = call(words)
    note = {'note': 'training was interrupted: times are of its last part'}
    times = {
        'train_seconds': round(wall, 1),
        'train_cpu_seconds': round(processor, 1),
        **(note if resumed else {}),
    }
    finished.write_text(json.dumps(times), encoding='utf-8')
    return times


def measure(
    table: TrainingTable, run: Run, *, options: Sequence[str], fresh: bool
) -> dict[str, Any]:
    """Train, test and perhaps publish a run; returns its row."""
    folder = work_dir_of(table, run)
    commit = current_commit()
    times = train(table, run, options=options, fresh=fresh)
    checkpoint = (folder / LAST).read_text(encoding='utf-8').strip()
    out = folder / 'metrics.json'
    call(
        [
            '-m',
            'taskptq.cli.test',
            run.config,
            checkpoint,
            '--out',
            str(out),
            '--work-dir',
            str(folder / 'test'),
        ]
    )
    measured = json.loads(out.read_text(encoding='utf-8'))
    metrics = {
        key: value
        for key, value in measured['metrics'].items()
        if value is not None
    }
    return {
        'variant': run.variant,
        'seed': run.seed,
        'config': run.config,
        'value': metrics.get(table.metric, 0.0),
        'metrics': metrics,
        **times,
        'eval_seconds': round(measured['eval_seconds'], 1),
        'parameters': count_parameters(checkpoint),
        'checkpoint': publish(table, run, checkpoint),
        'command': command_of(table, run, options),
        'commit': commit,
    }


def command_of(table: TrainingTable, run: Run, options: Sequence[str]) -> str:
    """Return the command line that measures a run anew."""
    pattern = '^' + run.name.replace('+', r'\+') + '$'
    words = [
        'python',
        'tools/run_training.py',
        table.path.as_posix(),
        '--redo',
        '--runs',
        pattern,
    ]
    if options:
        words += ['--train-options', *options]
    return shlex.join(words)


def count_parameters(checkpoint: str | Path) -> int:
    """Return the number of weights, without norms' and quantizers' own."""
    content = read_checkpoint(checkpoint)
    weights = content['state_dict']
    if isinstance(weights, str):
        weights = content[TRAINING_KEY]['weights']
    return sum(
        value.numel()
        for key, value in weights.items()
        if key.rpartition('.')[2] not in STATISTICS and '_quantizer' not in key
    )


def publish(table: TrainingTable, run: Run, checkpoint: str) -> str | None:
    """Publish a run of the table's published seed, in float16.

    Returns:
        The file, or None.
    """
    if table.checkpoints is None or run.seed != table.publish:
        return None
    out = Path(table.checkpoints) / f'{Path(run.config).stem}.pth'
    out.parent.mkdir(parents=True, exist_ok=True)
    call(
        [
            '-m',
            'taskptq.cli.publish',
            run.config,
            checkpoint,
            str(out),
            '--half',
        ]
    )
    return out.as_posix()


def put_run(
    results: Results, row: dict[str, Any], order: Sequence[str]
) -> None:
    """Add a row, or replace the one of its variant and seed."""
    rows = {name_of(old): old for old in results['rows']}
    rows[name_of(row)] = row
    places = {name: place for place, name in enumerate(order)}
    results['rows'] = sorted(
        rows.values(), key=lambda one: places.get(name_of(one), len(places))
    )


def name_of(row: dict[str, Any]) -> str:
    """Return ``<variant> <seed>`` of a measured row."""
    return f'{row["variant"]} {row["seed"]}'


def run_all(table: TrainingTable, args: argparse.Namespace) -> list[str]:
    """Measure what is lacking; returns the names of runs that failed."""
    results = load_results(table.results) or {
        'name': table.name,
        'metric': table.metric,
        'rows': [],
        'environment': {},
    }
    runs = [
        run
        for run in table.runs()
        if args.runs is None or re.search(args.runs, run.name)
    ]
    measured = {name_of(row): row for row in results['rows']}
    if args.list:
        for run in runs:
            value = measured.get(run.name, {}).get('value', 'lacking')
            print(f'{run.name:24} {value}')
        return []
    start = time.monotonic()
    order = [
        run.name
        for run in sorted(
            table.runs(),
            key=lambda run: [one['name'] for one in table.variants].index(
                run.variant
            ),
        )
    ]
    failed = []
    for run in runs:
        if run.name in measured and not args.redo:
            continue
        minutes = (time.monotonic() - start) / 60
        if args.max_minutes is not None and minutes > args.max_minutes:
            print('Out of time: the rest is left for the next call.')
            break
        try:
            row = measure(
                table, run, options=args.train_options, fresh=args.redo
            )
        except (RuntimeError, OSError, ValueError) as error:
            print(f'{run.name}: {error}')
            failed.append(run.name)
            continue
        put_run(results, row, order)
        reference = table.float_reference()
        if reference is not None:
            results['float'] = reference
        results['environment'] = describe_environment(
            torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        )
        save_results(results, table.results)
        print(f'{run.name}: {row["value"]} ({row["train_seconds"]:.0f} s)')
    return failed


def main(argv: list[str] | None = None) -> None:
    """Measure one table.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If the table is refused (the reason is one sentence), or
            runs failed.
    """
    args = parse_args(argv)
    load_projects()
    try:
        table = read_training_table(args.table)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    failed = run_all(table, args)
    if args.list:
        return
    print(render_training(table))
    for record in evaluate_training_targets(table):
        print(describe_training_target(record))
    if failed:
        raise SystemExit(f'{len(failed)} runs failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()
