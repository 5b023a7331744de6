"""Print which layers are quantized, at which bits, and what stays float.

    taskptq report q.pth [--json]

Everything comes from the quantized file, except the warnings of its
calibration: they are in the ``quantization_report.json`` next to it, which
counts if it names the same digest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from taskptq.cli.info import info_lines, printable
from taskptq.export.quantized_file import QuantizedFile, open_file
from taskptq.export.checkpoint import QuantizedCheckpointError
from taskptq.prepare.products_report import ProductReport, percent
from taskptq.prepare.report import SwapReport

__all__ = ['main']

SIDE_FILE = 'quantization_report.json'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        description='Print which layers are quantized, and how'
    )
    parser.add_argument('file', help='quantized file, *.pth')
    parser.add_argument(
        '--json', action='store_true', help='print JSON instead of text'
    )
    return parser.parse_args(argv)


def side_report(file: QuantizedFile) -> Mapping[str, Any]:
    """Return the report next to a file; empty if it describes another."""
    path = file.path.parent / SIDE_FILE
    try:
        report = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    if not isinstance(report, dict):
        return {}
    return report if report.get('digest') == file.payload['digest'] else {}


def warnings_of(swap: SwapReport, side: Mapping[str, Any]) -> list[str]:
    """Return the warnings, one sentence each.

    Args:
        swap: What was swapped and what ran.
        side: Report of the quantization, may be empty.
    """
    found = [
        f'{name} stays float: {why}'
        for name, why in {
            **swap.decisions.left_float,
            **(swap.products.left_float if swap.products else {}),
        }.items()
    ]
    found += [
        f'{name} was not folded into a layer: {why}'
        for name, why in swap.decisions.kept_norms.items()
    ]
    if swap.products is not None:
        found += [
            f'{name} was called by no traced batch'
            for name in swap.products.unreached
        ]
    calibration = side.get('calibration')
    if isinstance(calibration, Mapping):
        found += map(str, calibration.get('warnings') or ())
    return found


def product_lines(products: ProductReport) -> Iterator[str]:
    """Yield a line for each product that is not fully quantized."""
    left = [p for p in products.products if p.both < p.total]
    if not left:
        return
    yield 'Products that run in float, wholly or in part:'
    for product in left:
        share = percent(product.one + product.none, products.total)
        yield (
            f'  {product.module or "(model)"} {product.function}: {share} of '
            f'all multiply-accumulates ({product.reason or "no reason given"})'
        )


def report_lines(
    facts: Mapping[str, Any], swap: SwapReport, warnings: Sequence[str]
) -> Iterator[str]:
    """Yield the report as text.

    Args:
        facts: See ``QuantizedFile.facts``.
        swap: What was swapped and what ran.
        warnings: See :func:`warnings_of`.
    """
    yield from info_lines(facts)
    yield ''
    yield from map(printable, swap.table().splitlines())
    if swap.products is not None:
        yield from map(printable, product_lines(swap.products))
    if warnings:
        yield ''
        yield 'Warnings:'
        yield from (f'  {printable(text)}' for text in warnings)


def main(argv: list[str] | None = None) -> None:
    """Print the report of a file.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: With one sentence if it is not a quantized file; with
            status 1 if it was changed since it was written.
    """
    args = parse_args(argv)
    try:
        file = open_file(args.file)
        facts, swap = file.facts(), file.swap_report()
    except (FileNotFoundError, QuantizedCheckpointError) as error:
        raise SystemExit(str(error)) from error
    side = side_report(file)
    warnings = warnings_of(swap, side)
    if args.json:
        content = {
            'file': facts,
            'layers': [asdict(row) for row in swap.rows],
            'products': swap.products.to_dict() if swap.products else None,
            'decisions': swap.decisions.to_dict(),
            'warnings': warnings,
            'quantization': dict(side) or None,
        }
        print(json.dumps(content, indent=1))
    else:
        print('\n'.join(report_lines(facts, swap, warnings)))
    if not facts['verified']:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
