"""Give maliciously crafted files to every tool that reads files.

    python tools/benchmarks/crafted_files.py [--only NAME ...] [--tools ...]

No code of a file may run; no file may take 1 GiB or 20 s more than a good one;
every refusal is one sentence. Needs data/bccd and data/camvid. Each run is a
fork of one process that has imported the packages.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
OUT = 'tools/benchmarks/results/crafted-files.json'
# One thread, since forks must not wait for threads of the parent.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
sys.path.insert(0, str(REPOSITORY / 'tools'))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        description='Give crafted checkpoint files to every tool'
    )
    parser.add_argument(
        '--only',
        nargs='+',
        metavar='NAME',
        help='kinds or shell patterns of names (default: all)',
    )
    parser.add_argument(
        '--tools',
        nargs='+',
        metavar='TOOL',
        help='test quantize apis train mmdet mmseg ... (default: all)',
    )
    parser.add_argument(
        '--every',
        action='store_true',
        help='give each file to every tool (default: some of each kind)',
    )
    parser.add_argument(
        '--wide',
        action='store_true',
        help='try only the files that every tool gets',
    )
    parser.add_argument(
        '--seconds',
        type=float,
        default=90,
        help='processor time after which a run is stopped',
    )
    parser.add_argument(
        '--list', action='store_true', help='name the files and stop'
    )
    parser.add_argument(
        '--root',
        type=Path,
        default=REPOSITORY,
        help='checkout to try (default: this one)',
    )
    parser.add_argument(
        '--out',
        help=f'JSON file to write (default: {OUT} for a whole run, '
        'none for a part)',
    )
    return parser.parse_args(argv)


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Return a short table: each kind by tool, and the totals."""
    failed = [row for row in rows if row['wrong']]
    lines = []
    for kind in dict.fromkeys(row['kind'] for row in rows):
        of_kind = [row for row in rows if row['kind'] == kind]
        bad = sum(bool(row['wrong']) for row in of_kind)
        files = len({row['file'] for row in of_kind})
        lines.append(
            f'  {kind:10} {files:4d} files {len(of_kind):5d} runs '
            f'{bad:4d} violations'
        )
    reasons = Counter(reason for row in failed for reason in row['wrong'])
    lines += [
        f'  {reason}: {count}' for reason, count in reasons.most_common()
    ]
    lines.append(
        f'{len({row["file"] for row in rows})} files, {len(rows)} runs, '
        f'{len(failed)} violations, '
        f'{sum("ran code" in row["wrong"] for row in rows)} ran code'
    )
    return lines


def report(
    rows: list[dict[str, Any]], baselines: dict[tuple[str, str], Any]
) -> dict[str, Any]:
    """Return the contents of the JSON file: totals, baselines, every run."""
    return {
        'files': len({row['file'] for row in rows}),
        'runs': len(rows),
        'violations': sum(bool(row['wrong']) for row in rows),
        'ran_code': sum('ran code' in row['wrong'] for row in rows),
        'limits': {'more_mib': 1024, 'more_seconds': 20},
        'baselines': {
            f'{tool} with a good {source} file': {
                'seconds': round(done.seconds, 2),
                'peak_mib': round(done.peak_mib),
            }
            for (tool, source), done in baselines.items()
        },
        'rows': rows,
    }


def main(argv: list[str] | None = None) -> int:
    """Try the files; returns the exit status.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    args = parse_args(argv)
    os.chdir(REPOSITORY)
    from benchmarks.crafted.session import Session, preload

    package = preload(args.root.resolve())
    from benchmarks import run_setup
    from benchmarks.crafted.catalogue import is_wide, select

    cases = select(args.only)
    if args.wide:
        cases = [case for case in cases if is_wide(case)]
    if args.list or not cases:
        print('\n'.join(f'{c.kind:10} {c.name}: {c.effect}' for c in cases))
        return 0 if cases else 2
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix='crafted-') as folder:
        session = Session(
            Path(folder).resolve(),
            root=args.root.resolve(),
            package=package,
            say=lambda line: print(line, flush=True),
            seconds=args.seconds,
        )
        for case in cases:
            rows += session.run(
                case, args.tools, wide=args.every or is_wide(case)
            )
        result = report(rows, session.baselines)
    for row in rows:
        if row['wrong']:
            print(
                json.dumps(
                    {
                        key: row.get(key)
                        for key in (
                            'file',
                            'tool',
                            'wrong',
                            'seconds',
                            'peak_mib',
                            'last_line',
                        )
                    }
                )
            )
    print('\n'.join(summary(rows)))
    whole = args.only is None and args.tools is None and not args.wide
    if args.out or whole:
        run_setup.write_result(
            result, name='crafted-files', out=args.out or OUT
        )
    return int(any(row['wrong'] for row in rows))


if __name__ == '__main__':
    sys.exit(main())
