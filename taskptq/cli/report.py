"""Report on quantized files: as one HTML page, or as text.

    taskptq report CONFIG q.pth [more.pth ...] [--float FLOAT.pth]
        --out report.html
    taskptq report q.pth [--json]

The page needs no server and no network; its content is in a JSON file of the
same name as well. With CONFIG the models run on some test images, with
--float they are compared with the float model. Metrics are those that
``taskptq test`` recorded beside the files.

Without CONFIG and --out, the text comes from the file alone, except the
warnings of its calibration, which are in ``quantization_report.json`` beside
it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from taskptq.analysis.page.side_files import quantization_beside, warnings_of
from taskptq.cli.info import info_lines, printable
from taskptq.cli.numbers import count, share
from taskptq.export.checkpoint import QuantizedCheckpointError
from taskptq.export.quantized_file import open_file
from taskptq.prepare.products_report import ProductReport, percent
from taskptq.prepare.report import SwapReport

__all__ = ['main']

PAGE = 'report.html'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(
        description='Report on quantized files, as a page or as text',
        usage='%(prog)s [CONFIG] FILE.pth [FILE.pth ...] [options]',
    )
    parser.add_argument(
        'files',
        nargs='+',
        metavar='[CONFIG] FILE.pth',
        help='config of the float model, for a page on what it finds; then '
        'quantized files',
    )
    parser.add_argument(
        '--out', help=f'page to write, *.html (default with CONFIG: {PAGE})'
    )
    parser.add_argument(
        '--float', metavar='FLOAT.pth', help='float checkpoint to compare with'
    )
    parser.add_argument(
        '--float-folder',
        metavar='DIR',
        help='--work-dir in which taskptq test measured the float model '
        "(default: the files' own folders)",
    )
    parser.add_argument(
        '--images',
        type=count,
        default=16,
        help='test images to compare predictions on (default: 16)',
    )
    parser.add_argument(
        '--layer-images',
        type=count,
        default=4,
        help='images to measure layers on (default: 4)',
    )
    parser.add_argument(
        '--score',
        type=share,
        default=0.3,
        help='least confidence of objects (default: 0.3)',
    )
    parser.add_argument(
        '--device', help='cpu or cuda (default: a GPU if there is one)'
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle a float checkpoint that is not plain, which runs code '
        'that it names: for files whose source you trust',
    )
    parser.add_argument(
        '--json', action='store_true', help='print JSON instead of text'
    )
    args = parser.parse_args(argv)
    for path in args.files:
        if path.endswith('.onnx'):
            parser.error(
                f'{path} is an exported file: give the quantized file (*.pth) '
                'that it was exported from'
            )
    is_config = not args.files[0].endswith('.pth')
    args.config = args.files.pop(0) if is_config else None
    if not args.files:
        parser.error(f'give a quantized file after {args.config}')
    if args.out is None and args.config is not None:
        args.out = PAGE
    check_choice(args, parser)
    return args


def check_choice(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> None:
    """Refuse options that do not go together.

    Args:
        args: The command line.
        parser: Reports the error.
    """
    if args.out is None:
        if args.float is not None:
            parser.error('--float needs CONFIG before the file')
        if len(args.files) > 1:
            parser.error('for several files give --out PAGE.html')
        return
    if Path(args.out).suffix != '.html':
        parser.error(f'--out must end in .html, got {args.out}')
    if args.json:
        parser.error('--json prints; a page writes its JSON beside itself')
    if args.float is not None and args.config is None:
        parser.error('--float needs CONFIG before the file')


def write_page(args: argparse.Namespace) -> None:
    """Write the page and say where it is.

    Args:
        args: Result of :func:`parse_args`.

    Raises:
        SystemExit: With one sentence if something is missing or refused.
    """
    import torch
    from mmengine.logging import MMLogger

    from taskptq.analysis.page.render import MissingPackageError
    from taskptq.cli.projects import load_projects
    from taskptq.engine.page import PageSettings, make_page
    from taskptq.engine.refusals import refuse_unwritable_file

    if not MMLogger.check_instance_created('taskptq'):
        MMLogger.get_instance('taskptq', logger_name='taskptq')
    load_projects()
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        refuse_unwritable_file(args.out, name='--out')
        make_page(
            args.files,
            out=args.out,
            config=args.config,
            float_checkpoint=args.float,
            settings=PageSettings(
                num_images=args.images,
                layer_images=args.layer_images,
                score=args.score,
            ),
            device=args.device or default,
            float_folder=args.float_folder,
            trust_checkpoint=args.trust_checkpoint,
        )
    except (
        FileNotFoundError,
        MissingPackageError,
        QuantizedCheckpointError,
        ValueError,
    ) as error:
        raise SystemExit(str(error)) from error
    size = Path(args.out).stat().st_size
    print(f'{args.out}: {size / 2**20:.2f} MiB; open it in a browser')


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
    """Write a page, or print the report of a file.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: With one sentence if it is not a quantized file; with
            status 1 if it was changed since it was written.
    """
    args = parse_args(argv)
    if args.out is not None:
        write_page(args)
        return
    try:
        file = open_file(args.files[0])
        facts, swap = file.facts(), file.swap_report()
    except (FileNotFoundError, QuantizedCheckpointError) as error:
        raise SystemExit(str(error)) from error
    side = quantization_beside(file)
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
