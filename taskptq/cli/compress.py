"""Write a quantized file anew, with coded sections.

    taskptq compress q.pth --out small.pth [--codec auto]

What is read from the new file is the same, bit by bit, with the same digest.
``--codec auto`` takes the shortest code that needs no extra package.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from taskptq.core.atomic import DiskFullError
from taskptq.export.checkpoint import QuantizedCheckpointError, load, save
from taskptq.export.codecs import CHOICES
from taskptq.export.size_report import SizeReport, size_report

__all__ = ['compress', 'main']


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        description='Write a quantized file anew, with coded sections'
    )
    parser.add_argument('file', help='quantized file, *.pth')
    parser.add_argument('--out', help='file to write; without, only measure')
    parser.add_argument(
        '--codec',
        choices=CHOICES,
        default='auto',
        help='auto (default) needs no extra package to be read; zstd and '
        'constriction need the package of this name, and are read faster',
    )
    parser.add_argument(
        '--json', action='store_true', help='print JSON instead of text'
    )
    return parser.parse_args(argv)


def compress(file: str, *, out: str, codec: str = 'auto') -> SizeReport:
    """Write a quantized file anew and check that it is the same.

    Args:
        file: Quantized file, of any schema from 2 on.
        out: File to write.
        codec: One of ``CHOICES``.

    Returns:
        The sizes of the new file.

    Raises:
        QuantizedCheckpointError: If ``file`` is not a quantized file.
        ValueError: If the codec's package is missing.
    """
    payload = load(file)
    save(payload, out, codec=codec)
    again = load(out)
    if again['digest'] != payload['digest']:
        raise QuantizedCheckpointError(
            f'{out} does not read as it was written: keep {file}'
        )
    return size_report(out)


def main(argv: list[str] | None = None) -> None:
    """Compress a file, or measure it.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: With one sentence if the file cannot be read or written.
    """
    args = parse_args(argv)
    if not Path(args.file).is_file():
        raise SystemExit(f'there is no file {args.file}')
    found: dict[str, Any] = {}
    try:
        if args.out is None:
            report = size_report(args.file)
        else:
            before = Path(args.file).stat().st_size
            report = compress(args.file, out=args.out, codec=args.codec)
            found['before_bytes'] = before
    except (QuantizedCheckpointError, ValueError, DiskFullError) as error:
        raise SystemExit(str(error)) from error
    if args.json:
        print(json.dumps({**found, **report.to_dict()}, indent=1))
        return
    if found:
        print(f'{args.out}: before {found["before_bytes"]:,} bytes, now')
    print('\n'.join(report.lines()))


if __name__ == '__main__':
    main()
