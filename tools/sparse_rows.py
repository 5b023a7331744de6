"""Measure sparse models on a table's data, and write the page of all rows.

    python tools/sparse_rows.py TABLE.table.yml RECIPE... [--images 32]
    python tools/sparse_rows.py --page

The first adds rows to configs/sparsity/<model>_<dataset>.json, the second
writes configs/sparsity/README.md's tables from all of these files.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.measurement import Measurement
from taskptq.bench.recipe_rows import (
    measure_recipe,
    measure_rows,
    read_file,
)
from taskptq.bench.table import read_table
from taskptq.cli.numbers import count, seed
from taskptq.engine.calibration_config import CalibrationConfig

FOLDER = Path('configs') / 'sparsity'
BEGIN, END = '<!-- sparse rows: begin -->', '<!-- sparse rows: end -->'
# What ``tools/benchmarks sparse-weights`` measured.
RUNTIME = Path('runtime') / 'openvino.json'
SPEED = '<!-- sparse speed: begin -->', '<!-- sparse speed: end -->'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Measure sparse models')
    parser.add_argument('table', nargs='?', help='*.table.yml of the model')
    parser.add_argument('recipes', nargs='*', help='names, e.g. sparse70-erk')
    parser.add_argument(
        '--images', type=count, default=32, help='calibration images'
    )
    parser.add_argument('--seeds', type=seed, nargs='+', default=[0])
    parser.add_argument(
        '--page', action='store_true', help='write the page of all rows'
    )
    return parser.parse_args(argv)


def masks(report: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return what a row says of its zeros."""
    del file
    found = report.get('sparsity') or {}
    rates = [row['rate'] for row in found.get('layers', [])]
    learned = found.get('learned', {})
    return {
        'zeros': found.get('zeros'),
        'prunable': found.get('prunable'),
        'layer_rates': [min(rates), max(rates)] if rates else None,
        'learned': {k: v for k, v in learned.items() if k != 'thresholds'},
    }


def measure_row(
    measurement: Measurement, name: str, images: CalibrationConfig
) -> dict[str, Any]:
    """Make one sparse model and evaluate it."""
    with tempfile.TemporaryDirectory() as folder:
        row = measure_recipe(
            measurement,
            name,
            images=images,
            folder=Path(folder),
            extra=masks,
        )
    command = (
        f'python tools/sparse_rows.py {measurement.table.path} {name} '
        f'--images {images.num_images} --seeds {images.seed}'
    )
    return {**row, 'command': command}


def measure(args: argparse.Namespace) -> Path:
    """Measure rows and add each to the model's file when it is done."""
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
    return path


def page_lines(stored: dict[str, Any]) -> list[str]:
    """Return a model's table; seeds are averaged, with their spread."""
    full = stored['float']['value']
    lines = [
        f'### {stored["model"]}, {stored["dataset"]}',
        '',
        f'{stored["metric"]}, float {full:.4g}.',
        '',
        '| recipe | images | seeds | value | of float | zeros | by layer '
        '| MB | CPU s |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in stored['rows']:
        groups.setdefault((row['recipe'], row['images']), []).append(row)
    for (recipe, images), rows in sorted(groups.items()):
        values = [row['value'] for row in rows]
        mean = statistics.mean(values)
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        shown = f'{mean:.4g}' + (f' ± {spread:.2g}' if spread else '')
        low, high = rows[0]['layer_rates'] or (0.0, 0.0)
        zeros = f'{rows[0]["zeros"]} of {rows[0]["prunable"]}'
        size = statistics.mean(row['file_bytes'] for row in rows) / 1e6
        cpu = statistics.mean(row['cpu_seconds'] for row in rows)
        lines.append(
            f'| `{recipe}` | {images} | {len(rows)} | {shown} | '
            f'{mean / full:.1%} | {zeros} | {low:.0%} to {high:.0%} | '
            f'{size:.2f} | {cpu:.0f} |'
        )
    return [*lines, '']


def speed_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the table of times in a runtime that packs sparse weights."""
    lines = [
        '| model | zeros | rows | packed layers | dense, CPU ms '
        '| packed, CPU ms | speed |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in result['rows']:
        model = row['model']
        if 'width' in row:
            model += f' of {row["width"]} x {row["width"]}'
        zeros = f'{row["zeros"]:.0%}' if 'zeros' in row else ''
        dense, packed = (
            f'{1e3 * row["median_seconds"][name]:.2f}'
            for name in ('dense', 'packed')
        )
        lines.append(
            f'| {model} | {zeros} | {row.get("rows", "")} | '
            f'{row["packed_layers"]} | {dense} | {packed} | '
            f'{row["speed"]:.2f} |'
        )
    return lines


def replaced(text: str, marks: tuple[str, str], lines: Sequence[str]) -> str:
    """Replace what stands between two marks."""
    begin, end = marks
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    body = '\n'.join(lines).rstrip()
    return f'{before}{begin}\n\n{body}\n\n{end}{after}'


def write_page() -> Path:
    """Replace the tables of the page."""
    page = FOLDER / 'README.md'
    text = page.read_text(encoding='utf-8')
    lines: list[str] = []
    for path in sorted(FOLDER.glob('*.json')):
        lines += page_lines(read_file(path))
    text = replaced(text, (BEGIN, END), lines)
    if (FOLDER / RUNTIME).exists():
        speed = speed_lines(read_file(FOLDER / RUNTIME))
        text = replaced(text, SPEED, speed)
    page.write_text(text, encoding='utf-8')
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Measure rows, or write the page."""
    args = parse_args(argv)
    if args.page:
        path = write_page()
    elif args.table and args.recipes:
        path = measure(args)
    else:
        raise SystemExit('give a table and recipes, or --page')
    sys.stdout.write(f'{path}\n')


if __name__ == '__main__':
    main()
