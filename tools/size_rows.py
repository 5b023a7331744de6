"""Measure small files on a table's data; write their page and picture.

    python tools/size_rows.py TABLE.table.yml RECIPE... [--images 32]
    python tools/size_rows.py TABLE.table.yml --zoo
    python tools/size_rows.py --page

The first adds rows to configs/size/<model>_<dataset>.json, the second those of
the zoo's files in this repository, the third writes configs/size/RESULTS.md's
tables and pareto.svg from all of these files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.measurement import Measurement
from taskptq.bench.recipe_rows import measure_recipe, measure_rows
from taskptq.bench.size_files import add_zoo_rows
from taskptq.bench.size_page import write_page
from taskptq.bench.table import read_table
from taskptq.cli.compress import compress
from taskptq.cli.numbers import count, seed
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.size_step import num_values

FOLDER = Path('configs') / 'size'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Measure small files')
    parser.add_argument('table', nargs='?', help='*.table.yml of the model')
    parser.add_argument('recipes', nargs='*', help='names, e.g. w8a8_size10x')
    parser.add_argument(
        '--images', type=count, default=32, help='calibration images'
    )
    parser.add_argument('--seeds', type=seed, nargs='+', default=[0])
    parser.add_argument(
        '--zoo', action='store_true', help="add the zoo's files of the model"
    )
    parser.add_argument(
        '--page', action='store_true', help='write the page of all rows'
    )
    return parser.parse_args(argv)


def coded(file: Path) -> dict[str, Any]:
    """Return what the coder makes of a file: bytes of all and of weights."""
    with tempfile.TemporaryDirectory() as folder:
        report = compress(str(file), out=str(Path(folder) / 'small.pth'))
    weights = report.of_kind('weights')
    return {
        'coded_bytes': report.file_bytes,
        'weights': {
            'codes': weights.codes,
            'codec': weights.codec,
            'dense_bytes': weights.dense_bytes,
            'entropy_bytes': round(weights.entropy_bytes),
            'coded_bytes': weights.bytes,
        },
    }


def measure_row(
    measurement: Measurement, name: str, images: CalibrationConfig
) -> dict[str, Any]:
    """Make one file, with the size that a coder gives it, and evaluate it."""
    values = num_values(measurement.model)

    def extra(report: Mapping[str, Any], file: Path) -> dict[str, Any]:
        found = coded(file)
        sparsity = report.get('sparsity') or {}
        return {
            **found,
            'ratio': round(4 * values / found['coded_bytes'], 3),
            'zeros': sparsity.get('zeros'),
            'command': (
                f'python tools/size_rows.py {measurement.table.path} {name} '
                f'--images {images.num_images} --seeds {images.seed}'
            ),
        }

    with tempfile.TemporaryDirectory() as folder:
        return measure_recipe(
            measurement,
            name,
            images=images,
            folder=Path(folder),
            extra=extra,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure rows, or write the page."""
    args = parse_args(argv)
    if args.page:
        path = write_page(FOLDER)
    elif args.table and args.zoo:
        table = read_table(args.table)
        path = FOLDER / f'{table.name}.json'
        add_zoo_rows(table, path, coded=coded)
    elif args.table and args.recipes:
        table = read_table(args.table)
        path = FOLDER / f'{table.name}.json'
        tasks = [
            (
                name,
                CalibrationConfig.from_dict(
                    {'num_images': args.images}, seed=number
                ),
            )
            for name in args.recipes
            for number in args.seeds
        ]
        measure_rows(table, path, tasks=tasks, measure=measure_row)
    else:
        raise SystemExit('give a table and recipes or --zoo, or --page')
    sys.stdout.write(f'{path}\n')


if __name__ == '__main__':
    main()
