"""Quantize the hosts' own configs and write what that covers.

    taskptq bench coverage                        # one config per family
    taskptq bench coverage --families solov2,beit
    taskptq bench coverage my_config.py

Each config runs in a process of its own, with limits. The results file is
written after each, and configs that it has are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from taskptq.bench.coverage.one import SIZE
from taskptq.bench.coverage.table import page, summary
from taskptq.bench.coverage.zoo import HOSTS, families, smallest
from taskptq.core.atomic import write_atomically

GIBI = 2**30


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        prog='taskptq bench coverage',
        description='Measure what quantization covers of many configs',
    )
    parser.add_argument(
        'configs', nargs='*', help='configs (default: one of each family)'
    )
    parser.add_argument(
        '--families', help='names of families, separated by commas'
    )
    parser.add_argument(
        '--all', action='store_true', help='every config of the families'
    )
    parser.add_argument(
        '--out', default='configs/coverage.json', help='results file'
    )
    parser.add_argument(
        '--page', help='page to write (default: COVERAGE.md next to it)'
    )
    parser.add_argument(
        '--redo', action='store_true', help='measure again what is there'
    )
    parser.add_argument(
        '--seconds', type=float, default=600.0, help='most for one config'
    )
    parser.add_argument(
        '--gibibytes', type=float, default=16.0, help='most memory for one'
    )
    parser.add_argument(
        '--max-minutes', type=float, help='start none after so many minutes'
    )
    parser.add_argument(
        '--steps', type=int, default=0, help='reconstruct with so many steps'
    )
    parser.add_argument(
        '--size', type=int, nargs=2, default=SIZE, help='height and width'
    )
    return parser.parse_args(argv)


def chosen(args: argparse.Namespace) -> Iterator[tuple[str, str, Path]]:
    """Yield host, family and path of each config to measure.

    Raises:
        SystemExit: If a family is not there.
    """
    if args.configs:
        for config in map(Path, args.configs):
            host = next((h for h in HOSTS if h in config.parts), 'own')
            yield host, config.parent.name, config
        return
    wanted = None if args.families is None else args.families.split(',')
    known: set[str] = set()
    for host in HOSTS:
        try:
            found = families(host)
        except ValueError as error:
            sys.stderr.write(f'{error}\n')
            continue
        known |= found.keys()
        for family, paths in found.items():
            if wanted is None or family in wanted:
                for path in paths if args.all else [smallest(paths)]:
                    yield host, family, path
    for family in wanted or ():
        if family not in known:
            raise SystemExit(
                f'--families: there is no {family!r}: choose of '
                f'{", ".join(sorted(known))}'
            )


def run_one(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one config in a process of its own.

    Args:
        path: Config.
        args: The command's arguments.

    Returns:
        The record, or a dict with the ``failure``.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / 'record.json'
        command = [
            sys.executable, '-m', 'taskptq.bench.coverage.one', str(path),
            str(out), '--steps', str(args.steps),
            '--size', *map(str, args.size),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=args.seconds,
                check=False,
                env={**os.environ, 'OMP_WAIT_POLICY': 'PASSIVE'},
                preexec_fn=partial(_limit, int(args.gibibytes * GIBI)),
            )
        except subprocess.TimeoutExpired:
            return {'failure': f'not done after {args.seconds:g} s'}
        if not out.exists():
            return {'failure': reason_of(done.stderr, done.returncode)}
        record: dict[str, Any] = json.loads(out.read_text(encoding='utf-8'))
        return record


def reason_of(stderr: str, returncode: int) -> str:
    r"""Return the last line of an error, or how the process ended.

    >>> reason_of('Traceback\nKeyError: 1\n', 1)
    'KeyError: 1'

    Args:
        stderr: What the process wrote.
        returncode: Its exit status.
    """
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if 'Error' in line.split(':')[0]]
    if returncode < 0:
        return f'ended by signal {-returncode}'
    return (errors or lines or [f'exit status {returncode}'])[-1][:300]


def save(path: Path, text: str) -> None:
    """Write a text file that is whole at any time."""
    write_atomically(path, lambda file: file.write(text.encode()))


def _limit(num_bytes: int) -> None:
    """Limit the memory of this process."""
    resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    args = parse_args(argv)
    out = Path(args.out)
    target = Path(args.page) if args.page else out.with_name('COVERAGE.md')
    records: dict[str, dict[str, Any]] = (
        json.loads(out.read_text(encoding='utf-8')) if out.exists() else {}
    )
    start = time.monotonic()
    for host, family, path in chosen(args):
        name = f'{host}/{family}/{path.stem}'
        if name in records and not args.redo:
            continue
        late = args.max_minutes and (
            time.monotonic() - start > 60 * args.max_minutes
        )
        if late:
            break
        found = run_one(path, args)
        records[name] = {
            'host': host,
            'family': family,
            'config': path.name,
            **found,
        }
        save(out, json.dumps(records, indent=1, sort_keys=True) + '\n')
        save(target, page(records.values()))
        share = found.get('macs', {}).get('share')
        print(name, found.get('failure') or f'{share:.2%}', flush=True)
    print(summary(records.values()))


if __name__ == '__main__':
    main()
