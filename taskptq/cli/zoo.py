"""Run the zoo's files again and compare them with what is printed of them.

    taskptq bench zoo                       # every file of configs/zoo.yml
    taskptq bench zoo --only yolox          # those in whose name it is found
    taskptq bench zoo --rebuild             # make them again, too
    taskptq bench zoo --write               # make what was never made
    taskptq bench zoo --latency             # time ONNX files and float ones

A file in the repository must have the listed SHA-256, any other one is made
again and must come out with it; both must score the printed digits in the
host's own evaluation, as must their ONNX files. Each runs by itself: what
fails is named at the end, and the command then exits with 1. Files are made
on one thread, so that the number of cores does not change them. A file that
lacks its export alone is exported as it is.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch

from taskptq.bench.measurement import current_commit, describe_environment
from taskptq.bench.zoo.check import check_file, stored_problems
from taskptq.bench.zoo.latency import has_export, measure_latency
from taskptq.bench.zoo.records import (
    is_outdated,
    load_records,
    printed,
    put_record,
)
from taskptq.bench.zoo.rows import name_checkpoint
from taskptq.bench.zoo.source import SOURCE, ZooFile, read_zoo
from taskptq.bench.zoo.work import WORK_DIR, Tools
from taskptq.bench.zoo.write import write_export, write_file
from taskptq.cli import export, quantize, test
from taskptq.cli.bench import updated
from taskptq.cli.numbers import minutes
from taskptq.cli.projects import load_projects

STATE = 'checked.json'
# What a command, a host or a damaged file may raise; the next file goes on.
ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SystemExit,
    TypeError,
    ValueError,
)
TOOLS = Tools(quantize=quantize.main, test=test.main, export=export.main)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        prog='taskptq bench zoo',
        description='Check the quantized files of the zoo, or make them',
    )
    parser.add_argument(
        '--only',
        help='regular expression: only files in whose name '
        '<model>_<recipe>_<dataset> it is found',
    )
    parser.add_argument(
        '--list', action='store_true', help='show the files and stop'
    )
    parser.add_argument(
        '--rebuild',
        action='store_true',
        help='make files again that are there, too',
    )
    parser.add_argument(
        '--write',
        action='store_true',
        help='make and record what was never made, instead of checking',
    )
    parser.add_argument(
        '--latency',
        action='store_true',
        help='time the ONNX files that are there, and their float models, '
        'on one thread; recorded and not compared',
    )
    parser.add_argument(
        '--resume',
        action='store_true',
        help='go on with an interrupted run, with what it has left in '
        f'{WORK_DIR}',
    )
    parser.add_argument(
        '--max-minutes',
        type=minutes,
        help='start no further file after so many minutes',
    )
    args = parser.parse_args(argv)
    if args.write and args.latency:
        parser.error('--write and --latency exclude each other')
    return args


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as the listed files were made."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def check(file: ZooFile, args: argparse.Namespace) -> list[str]:
    """Return what differs of one file.

    Args:
        file: The file.
        args: Result of :func:`parse_args`.
    """
    record = load_records().get(file.name)
    return check_file(
        file,
        record,
        tools=TOOLS,
        folder=WORK_DIR / file.name,
        rebuild=args.rebuild,
        resume=args.resume,
    )


def write(file: ZooFile, args: argparse.Namespace) -> list[str]:
    """Make and record one file.

    Args:
        file: The file.
        args: Result of :func:`parse_args`.

    Returns:
        What went wrong: nothing, or it would have raised.
    """
    old = load_records().get(file.name)
    folder = WORK_DIR / file.name
    if old is not None and not args.rebuild and is_here(file, old):
        record = write_export(
            file, old, tools=TOOLS, folder=folder, facts=run_facts()
        )
    else:
        record = write_file(
            file,
            old,
            tools=TOOLS,
            folder=folder,
            facts=run_facts(),
            resume=args.resume,
        )
    put_record(file.name, record)
    if file.table.results.is_file():
        with updated(file.table, file.table.results) as results:
            name_checkpoint(results, file, record)
    return []


def run_facts() -> dict[str, Any]:
    """Return what a record says of the run."""
    environment = describe_environment(torch.device('cpu'))
    return {'commit': current_commit(), 'environment': environment}


def time_export(file: ZooFile, args: argparse.Namespace) -> list[str]:
    """Time and record one file's export.

    Args:
        file: The file.
        args: Result of :func:`parse_args`.

    Returns:
        What went wrong: nothing, or it would have raised.
    """
    record = load_records()[file.name]
    latency = measure_latency(
        file,
        record,
        tools=TOOLS,
        folder=WORK_DIR / file.name,
        facts=run_facts(),
    )
    onnx = {**record['onnx'], 'latency': latency}
    put_record(file.name, {**record, 'onnx': onnx})
    return []


def is_here(file: ZooFile, record: Mapping[str, Any]) -> bool:
    """Whether a file lies in the repository as it is listed now."""
    return (
        bool(record['committed'])
        and not is_outdated(file, record)
        and not stored_problems(Path(record['file']), record)
    )


def is_written(file: ZooFile) -> bool:
    """Whether a file is recorded, with the settings that are listed now."""
    record = load_records().get(file.name)
    if record is None or is_outdated(file, record):
        return False
    onnx = record.get('onnx') or {}
    keys = ('dynamic', 'export_images')
    made_with = {key: onnx[key] for key in keys if key in onnx}
    return not file.onnx or (
        bool(onnx) and file.export_settings() == made_with
    )


def to_do(files: list[ZooFile], args: argparse.Namespace) -> list[ZooFile]:
    """Return the files that this run is for.

    Args:
        files: Files that were asked for.
        args: Result of :func:`parse_args`.
    """
    if args.write:
        return [f for f in files if args.rebuild or not is_written(f)]
    if args.latency:
        records = load_records()
        return [f for f in files if has_export(records.get(f.name))]
    done = read_state() if args.resume else []
    return [file for file in files if file.name not in done]


def read_state() -> list[str]:
    """Return the names of the files that an interrupted check found good."""
    path = WORK_DIR / STATE
    if not path.is_file():
        return []
    names: list[str] = json.loads(path.read_text(encoding='utf-8'))
    return names


def save_state(names: list[str]) -> None:
    """Write the names of the files that were found good."""
    WORK_DIR.mkdir(parents=True, exist_ok=True)
    (WORK_DIR / STATE).write_text(json.dumps(names) + '\n', encoding='utf-8')


def run(files: list[ZooFile], args: argparse.Namespace) -> list[str]:
    """Check or make files, one after another.

    Args:
        files: The files.
        args: Result of :func:`parse_args`.

    Returns:
        A sentence for each thing that differs or failed.
    """
    makes = args.write or args.latency
    verdict = 'recorded' if makes else 'as listed'
    start = time.monotonic()
    good = read_state() if args.resume and not makes else []
    problems = []
    for number, file in enumerate(files, start=1):
        elapsed = (time.monotonic() - start) / 60
        if args.max_minutes and elapsed > args.max_minutes:
            left = len(files) - number + 1
            print(f'Out of time: {left} files are left; --resume goes on')
            break
        found = attempt(file, args)
        problems += found
        text = '; '.join(found) or verdict
        print(f'[{number}/{len(files)}] {file.name}: {text}', flush=True)
        if not found and not makes:
            save_state(good := [*good, file.name])
    return problems


def attempt(file: ZooFile, args: argparse.Namespace) -> list[str]:
    """Check or make one file; what it raises is said of it.

    Args:
        file: The file.
        args: Result of :func:`parse_args`.
    """
    try:
        return work(args)(file, args)
    except ERRORS as error:
        logging.getLogger(__name__).debug('failed', exc_info=True)
        return [f'{file.name}: {reason(error)}']
    finally:
        # Runners hold their data loaders' workers in cycles.
        gc.collect()


def work(
    args: argparse.Namespace,
) -> Callable[[ZooFile, argparse.Namespace], list[str]]:
    """Return what is done with each file."""
    if args.write:
        return write
    return time_export if args.latency else check


def reason(error: BaseException) -> str:
    """Return what an exception says, with its kind unless it is our own."""
    if isinstance(error, (SystemExit, ValueError)):
        return str(error)
    return f'{type(error).__name__}: {error}'


def show(files: list[ZooFile]) -> str:
    """Return a line for each file: its value, size and place."""
    records = load_records()
    lines = []
    for file in files:
        record = records.get(file.name)
        if record is None:
            lines.append(f'{file.name}: never made')
            continue
        place = record['file'] if record['committed'] else 'made on demand'
        lines.append(
            f'{file.name}: {file.metric} {printed(record["value"])}, '
            f'{record["bytes"]} bytes, {place}'
        )
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
    """Check the zoo, or make what it lacks.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If the list is refused, or a file differs or fails.
    """
    args = parse_args(argv)
    load_projects()
    try:
        files = read_zoo(only=args.only)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if not files:
        raise SystemExit(
            f'{SOURCE} lists no file'
            + (f' with {args.only!r} in its name' if args.only else '')
        )
    if args.list:
        print(show(files))
        return
    with one_thread():
        problems = run(to_do(files, args), args)
    if problems:
        raise SystemExit('\n'.join(['The zoo differs:', *problems]))


if __name__ == '__main__':
    main()
