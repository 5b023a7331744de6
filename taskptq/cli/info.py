"""Describe a quantized file.

    taskptq info q.pth [--json]

The file is read without running code from it. The exit status is 1 if its
digest does not match its content, or if its numbers are impossible.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from taskptq.export.checkpoint import QuantizedCheckpointError
from taskptq.export.quantized_file import open_file
from taskptq.export.runtime import is_onnx_path

TITLES = {
    'weight': 'weights',
    'activation': 'activations',
    'attention': 'attention',
    'softmax': 'softmax',
}

__all__ = ['info_lines', 'main', 'printable']


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Describe a quantized file')
    parser.add_argument('file', help='quantized file, *.pth')
    parser.add_argument(
        '--json', action='store_true', help='print JSON instead of text'
    )
    return parser.parse_args(argv)


def info_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the facts as text, one line each.

    Args:
        facts: See ``QuantizedFile.facts``.
    """
    for title, text in _entries(facts):
        yield f'{title:12}{printable(text)}'


def _entries(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield 'file', facts['file']
    classes = facts['num_classes']
    yield (
        'model',
        ', '.join(
            [
                facts['model'] or 'not recorded',
                *([f'config {facts["config"]}'] if facts['config'] else []),
                *([f'{classes} classes'] if classes else []),
            ]
        ),
    )
    yield (
        'recipe',
        '; '.join([facts['recipe'] or 'no name recorded', *facts['parts']]),
    )
    for point, counts in facts['bits'].items():
        yield TITLES[point], _bits_text(counts)
    yield 'quantized', _share_text(facts)
    yield 'size', _size_text(facts)
    yield 'written by', f'taskptq {facts["version"]}, schema {facts["schema"]}'
    yield (
        'digest',
        f'{facts["digest"]} '
        + ('(verified)' if facts['verified'] else '(NOT VERIFIED)'),
    )
    if facts['fault']:
        yield 'fault', facts['fault']


def _bits_text(counts: Mapping[str, int]) -> str:
    """Return e.g. ``4 bits (17 layers), 8 bits (3 layers)``."""
    return ', '.join(
        f'{bits} bits ({count} layer{"s" * (count != 1)})'
        for bits, count in counts.items()
    )


def _share_text(facts: Mapping[str, Any]) -> str:
    share = facts['share_of_macs']
    macs = (
        'share of multiply-accumulates not recorded'
        if share is None
        else f'{share:.1%} of multiply-accumulates'
    )
    return f'{facts["share_of_parameters"]:.1%} of parameters, {macs}'


def _size_text(facts: Mapping[str, Any]) -> str:
    size, of_float = facts['file_bytes'], facts['float_bytes']
    return (
        f'{size:,} bytes, {size / max(1, of_float):.1%} of the float model; '
        f'{facts["num_weights"]} packed weights in '
        f'{facts["packed_bytes"]:,} bytes'
    )


def printable(text: str) -> str:
    """Replace control characters, which could steer a terminal."""
    return ''.join(c if c.isprintable() else '?' for c in str(text))


def main(argv: list[str] | None = None) -> None:
    """Print the facts of a file.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: With one sentence if it is not a quantized file; with
            status 1 if it was changed since it was written.
    """
    args = parse_args(argv)
    if is_onnx_path(args.file):
        raise SystemExit(
            f'{args.file} is an exported file: give the quantized file '
            '(*.pth) that it was exported from'
        )
    try:
        facts = open_file(args.file).facts()
    except (FileNotFoundError, QuantizedCheckpointError) as error:
        raise SystemExit(str(error)) from error
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        print('\n'.join(info_lines(facts)))
    if not facts['verified']:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
