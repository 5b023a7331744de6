"""Measure sparse models on a table's data, and write the page of all rows.

    python tools/sparse_rows.py TABLE.table.yml RECIPE... [--images 32]
    python tools/sparse_rows.py --page

The first adds rows to configs/sparsity/<model>_<dataset>.json, the second
writes configs/sparsity/README.md's tables from all of these files.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.measurement import Measurement
from taskptq.bench.table import read_table
from taskptq.cli.numbers import count, seed
from taskptq.core.atomic import write_atomically
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.contexts import seeded
from taskptq.engine.pipeline import quantize_model
from taskptq.engine.recipe import Recipe
from taskptq.engine.recipe_source import read_recipe

FOLDER = Path('configs') / 'sparsity'
BEGIN, END = '<!-- sparse rows: begin -->', '<!-- sparse rows: end -->'


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


def recipe_of(name: str, *, images: CalibrationConfig) -> Recipe:
    """Return the checked recipe of a name."""
    parts = read_recipe(name)
    return Recipe.from_config(
        parts['qconfig'],
        reconstruction=parts.get('reconstruction'),
        loss=parts.get('loss'),
        rewrites=parts.get('rewrites'),
        calibration=images.recipe(),
        seed=images.seed,
    )


def measure_row(
    measurement: Measurement, name: str, *, images: CalibrationConfig
) -> dict[str, Any]:
    """Make one sparse model and evaluate it."""
    model = copy.deepcopy(measurement.model)
    recipe = recipe_of(name, images=images)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        report = quantize_model(
            model,
            measurement.batches(images),
            recipe=recipe,
            work_dir=folder,
            resume=False,
        )
    seconds = time.process_time() - start
    with seeded(images.seed):
        metrics, _ = measurement.evaluate(model)
    found = report.get('sparsity') or {}
    rates = [row['rate'] for row in found.get('layers', [])]
    return {
        'recipe': name,
        'seed': images.seed,
        'images': images.num_images,
        **measurement.scores(metrics),
        'zeros': found.get('zeros'),
        'prunable': found.get('prunable'),
        'layer_rates': [min(rates), max(rates)] if rates else None,
        'learned': {
            key: value
            for key, value in found.get('learned', {}).items()
            if key != 'thresholds'
        },
        'cpu_seconds': round(seconds, 1),
        'file_bytes': report['file_bytes'],
        'commit': measurement.commit,
    }


def read_file(path: Path) -> dict[str, Any]:
    """Return the rows measured so far."""
    if not path.is_file():
        return {'rows': []}
    stored: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    return stored


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file of rows atomically."""
    text = json.dumps(content, indent=1) + '\n'
    write_atomically(path, lambda file: file.write(text.encode()))


def measure(args: argparse.Namespace) -> Path:
    """Measure rows and add each to the model's file when it is done."""
    table = read_table(args.table)
    path = FOLDER / f'{table.name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = read_file(path)
    measurement = Measurement(table)
    if 'float' not in stored:
        found = measurement.measure_float()
        stored = {
            'model': table.model,
            'dataset': table.dataset,
            'metric': table.metric,
            'float': {k: found[k] for k in ('config', 'checkpoint', 'value')},
            'environment': measurement.environment(),
            'rows': stored['rows'],
        }
    for name in args.recipes:
        for number in args.seeds:
            images = CalibrationConfig.from_dict(
                {'num_images': args.images}, seed=number
            )
            row = measure_row(measurement, name, images=images)
            row['command'] = (
                f'python tools/sparse_rows.py {args.table} {name} '
                f'--images {args.images} --seeds {number}'
            )
            key = (name, number, args.images)
            stored['rows'] = [
                old
                for old in stored['rows']
                if (old['recipe'], old['seed'], old['images']) != key
            ]
            stored['rows'].append(row)
            write_json(path, stored)
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


def write_page() -> Path:
    """Replace the tables of the page."""
    page = FOLDER / 'README.md'
    text = page.read_text(encoding='utf-8')
    lines: list[str] = []
    for path in sorted(FOLDER.glob('*.json')):
        lines += page_lines(read_file(path))
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = '\n'.join(lines).rstrip()
    page.write_text(
        f'{before}{BEGIN}\n\n{body}\n\n{END}{after}', encoding='utf-8'
    )
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
