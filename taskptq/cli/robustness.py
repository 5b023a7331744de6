"""Measure how a float and quantized models hold under noise.

    taskptq bench robustness CONFIG FLOAT.pth Q.pth ... --noise systems
    taskptq bench robustness CONFIG FLOAT.pth Q.pth --quick
    taskptq bench robustness CONFIG FLOAT.pth Q.pth --only fog=3 ceil_mode

Writes robustness.json after every row, and at the end tables and a picture
beside it. An interrupted run goes on where it stopped, a further file is added
to the rows that are there, and the bits are the same with any number of
processes: each runs on one thread.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import cv2
import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger, print_log

from taskptq.apis import read_config
from taskptq.bench.measurement import (
    current_commit,
    describe_environment,
    file_digest,
)
from taskptq.bench.robustness.evaluation import RobustnessEvaluation
from taskptq.bench.robustness.markdown import render
from taskptq.bench.robustness.plan import (
    CLEAN,
    EPSILONS,
    FAMILIES,
    Row,
    parse_row,
    plan_rows,
)
from taskptq.bench.robustness.records import Records
from taskptq.bench.robustness.session import Session
from taskptq.bench.robustness.subjects import load_subjects
from taskptq.cli.numbers import number, whole
from taskptq.cli.projects import load_projects
from taskptq.engine.checkpoint_file import local_file
from taskptq.engine.refusals import (
    one_sentence,
    refuse_unwritable_folder,
)
from taskptq.robustness.corruptions import SEVERITIES

QUICK_IMAGES = 30
MOST_PROCESSES = 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        prog='taskptq bench robustness',
        description='Measure models under system noise, corruptions, attacks',
    )
    parser.add_argument('config', help='config file of the float model')
    parser.add_argument('checkpoint', help='float checkpoint')
    parser.add_argument(
        'files', nargs='*', help='quantized or exported files to compare'
    )
    parser.add_argument(
        '--noise',
        nargs='+',
        choices=FAMILIES,
        default=['systems'],
        help='what to measure (default: systems)',
    )
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='NAME',
        help='rows by name instead, such as resize=opencv-nearest, fog=3, '
        'ceil_mode, pgd=4; names joined by + act together',
    )
    parser.add_argument('--out', help='folder (default: in work_dirs)')
    parser.add_argument(
        '--max-images',
        type=whole(low=1),
        help='test images, spread over the set (default: all)',
    )
    parser.add_argument(
        '--quick',
        action='store_true',
        help=f'--max-images {QUICK_IMAGES}: shows what is large',
    )
    parser.add_argument(
        '--severities',
        nargs='+',
        type=whole(low=1, high=SEVERITIES[-1]),
        default=list(SEVERITIES),
        help='severities of corruptions (default: 1 2 3 4 5)',
    )
    parser.add_argument(
        '--validation-corruptions',
        action='store_true',
        help='the four corruptions for choosing settings, not the fifteen',
    )
    parser.add_argument(
        '--epsilons',
        nargs='+',
        type=number(low=1e-3, high=255),
        default=list(EPSILONS),
        help='budgets of attacks in pixel values (default: 2 4 8)',
    )
    parser.add_argument(
        '--processes',
        type=whole(low=1),
        help='processes that share the rows (default: one per core, at most '
        f'{MOST_PROCESSES})',
    )
    parser.add_argument(
        '--seed', type=whole(low=0), default=0, help='seed of random noises'
    )
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle a checkpoint that is not plain, which runs code that '
        'it names: for files whose source you trust',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of CONFIG to override, as key=value',
    )
    # Of a process that another one started.
    parser.add_argument(
        '--helper', action='store_true', help=argparse.SUPPRESS
    )
    return parser.parse_args(argv)


def read_rows(args: argparse.Namespace) -> list[Row]:
    """Return the rows asked for, the clean one first.

    Raises:
        ValueError: If a name is unknown.
    """
    if args.only is not None:
        clean = Row(name=CLEAN, family=CLEAN)
        return [clean, *map(parse_row, dict.fromkeys(args.only))]
    return plan_rows(
        args.noise,
        severities=sorted(set(args.severities)),
        epsilons=sorted(set(args.epsilons)),
        validation=args.validation_corruptions,
    )


def open_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line to it."""
    config = read_config(args.config)
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    return config


def open_session(args: argparse.Namespace, folder: Path) -> Session:
    """Build the evaluation and load the models.

    Args:
        args: Result of :func:`parse_args`.
        folder: Folder of the results.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    config = open_config(args)
    most = QUICK_IMAGES if args.quick else args.max_images
    # Names what is missing before anything is built.
    for file in (args.checkpoint, *args.files):
        local_file(file)
    evaluation = RobustnessEvaluation(config, max_images=most, seed=args.seed)
    subjects = load_subjects(
        config,
        args.checkpoint,
        args.files,
        model=evaluation.model,
        device=args.device,
        trust_checkpoint=args.trust_checkpoint,
    )
    records = Records(
        folder,
        {
            'model': Path(args.config).stem,
            'config': args.config,
            'images': len(evaluation.images),
            'seed': args.seed,
            'float_sha256': file_digest(args.checkpoint),
        },
    )
    return Session(
        evaluation=evaluation,
        subjects=subjects,
        records=records,
        log=partial(print, flush=True),
        commit=current_commit(),
    )


def start_helpers(
    args: argparse.Namespace, argv: Sequence[str], *, rows: int
) -> list[subprocess.Popen[bytes]]:
    """Start processes that measure rows of the same file.

    Args:
        args: Result of :func:`parse_args`.
        argv: What it was read from.
        rows: Number of rows.
    """
    if args.helper:
        return []
    cores = len(os.sched_getaffinity(0))
    wanted = args.processes or min(cores, MOST_PROCESSES)
    command = [
        sys.executable,
        '-m',
        'taskptq',
        'bench',
        'robustness',
        *argv,
        '--helper',
    ]
    return [
        subprocess.Popen(command, stdout=subprocess.DEVNULL)
        for _ in range(min(wanted, rows) - 1)
    ]


def run(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Measure what is missing, and write tables and a picture.

    Args:
        args: Result of :func:`parse_args`.
        argv: What it was read from.

    Returns:
        The content of the results file.

    Raises:
        ValueError: If a row that was asked for by name concerns no model.
    """
    start, spent = time.monotonic(), processor_seconds()
    rows = read_rows(args)
    folder = Path(args.out or f'work_dirs/robustness/{Path(args.config).stem}')
    refuse_unwritable_folder(folder, name='--out')
    helpers = start_helpers(args, argv, rows=len(rows))
    try:
        session = open_session(args, folder)
        session.measure(rows)
    except BaseException:
        for helper in helpers:
            helper.terminate()
        raise
    if args.helper:
        return session.records.read()
    for helper in helpers:
        helper.wait()
    # What a process left behind that failed.
    session.measure(rows)
    if args.only is None and 'systems' in args.noise:
        combined = session.combined(rows)
        if combined is not None:
            session.measure([combined])
            rows.append(combined)
    content = session.records.finish(
        [row.name for row in rows],
        session.subjects,
        run={
            'command': shlex.join(['taskptq', 'bench', 'robustness', *argv]),
            'commit': session.commit,
            'seconds': round(time.monotonic() - start, 1),
            'processor_seconds': round(processor_seconds() - spent, 1),
            'processes': 1 + len(helpers),
        },
        environment=describe_environment(torch.device(args.device)),
    )
    write_pages(content, folder)
    refuse_untouched(content, args.only or ())
    return content


def processor_seconds() -> float:
    """Return the processor time of this process and those it waited for."""
    return sum(os.times()[:4])


def write_pages(content: dict[str, Any], folder: Path) -> None:
    """Write tables, and a picture where matplotlib is installed."""
    (folder / 'robustness.md').write_text(render(content), encoding='utf-8')
    try:
        from taskptq.bench.robustness.plot import plot_losses

        plot_losses(content, folder / 'robustness.png')
    except ModuleNotFoundError as error:
        print_log(
            f'no picture without {error.name}: pip install matplotlib',
            logger='current',
        )


def refuse_untouched(content: dict[str, Any], names: Sequence[str]) -> None:
    """Refuse a noise that was asked for by name and changes nothing.

    Raises:
        ValueError: With its reason.
    """
    wanted = {parse_row(name).name for name in names}
    for row in content['rows']:
        found = row['results'].values()
        if row['noise'] in wanted and all('reason' in one for one in found):
            reasons = dict.fromkeys(one['reason'] for one in found)
            raise ValueError(
                f'{row["noise"]} is not applicable: {"; ".join(reasons)}'
            )


def main(argv: list[str] | None = None) -> None:
    """Measure robustness.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If something is refused; the reason is one sentence.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(given)
    if not MMLogger.check_instance_created('robustness'):
        MMLogger.get_instance('robustness', logger_name='taskptq')
    load_projects()
    with one_sentence():
        content = run(args, given)
    if not args.helper:
        print(render(content))


if __name__ == '__main__':
    main()
