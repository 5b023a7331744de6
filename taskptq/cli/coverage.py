"""Quantize the hosts' own configs and write what that covers.

    taskptq bench coverage                        # one config per family
    taskptq bench coverage --families solov2,beit
    taskptq bench coverage my_config.py

Each config runs in a process of its own, with limits. The results file is
written after each, and configs that it has are not run again, except for a
reconstruction that was not tried.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from taskptq.bench.coverage.process import run_apart
from taskptq.bench.coverage.table import page, summary
from taskptq.bench.coverage.zoo import (
    HOSTS,
    families,
    size_of,
    smallest,
)
from taskptq.bench.measurement import current_commit
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
        '--seconds', type=float, default=600.0, help='most CPU for one config'
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
        '--light-after',
        type=float,
        default=float('inf'),
        metavar='S',
        help='do not reconstruct models whose float part takes longer',
    )
    parser.add_argument(
        '--size',
        type=int,
        nargs=2,
        help='height and width (default: the smallest that a model takes)',
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


def cost(config: tuple[str, str, Path]) -> int:
    """Return how large a config's backbone is, by its name."""
    return size_of(config[2].stem)


def is_done(record: dict[str, Any] | None, args: argparse.Namespace) -> bool:
    """Return whether a record holds what is asked for.

    Args:
        record: Of an earlier run, if any.
        args: The command's arguments.
    """
    if record is None or 'failure' in record or not args.steps:
        return record is not None
    seconds: float = record['float_seconds']
    tried = 'units' in record or 'reconstruction_failure' in record
    return tried or seconds > args.light_after


def run_one(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one config in a process of its own.

    If a reconstruction fails, the rest is measured without, and the record
    says why under ``reconstruction_failure``.

    Args:
        path: Config.
        args: The command's arguments.

    Returns:
        The record, or a dict with the ``failure``.
    """
    settings = {'light_after': args.light_after}
    if args.size:
        settings['sizes'] = [args.size]
    run = partial(
        run_apart,
        path,
        seconds=args.seconds,
        num_bytes=int(args.gibibytes * GIBI),
    )
    record = run(settings | {'steps': args.steps})
    failure = record.get('failure')
    if failure is None or not args.steps:
        return record
    record = run(settings)
    if 'failure' not in record:
        record['reconstruction_failure'] = failure
    return record


def save(path: Path, text: str) -> None:
    """Write a text file that is whole at any time."""
    write_atomically(path, lambda file: file.write(text.encode()))


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
    start, commit = time.monotonic(), current_commit()
    # The cheapest first, so that a limit in minutes leaves out few.
    for host, family, path in sorted(chosen(args), key=cost):
        name = f'{host}/{family}/{path.stem}'
        if not args.redo and is_done(records.get(name), args):
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
            'commit': commit,
            **found,
        }
        save(out, json.dumps(records, indent=1, sort_keys=True) + '\n')
        save(target, page(records.values()))
        share = found.get('macs', {}).get('share')
        print(name, found.get('failure') or f'{share:.2%}', flush=True)
    print(summary(records.values()))


if __name__ == '__main__':
    main()
