"""README markers for what was measured of exported files.

``files:scores`` and ``files:curve`` read the results of
``projects/deployment/measure.py``, ``files:speed`` those of
``measure_speed.py``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.markdown import to_markdown
from taskptq.bench.training_table import ABSENT

__all__ = ['update_file_text']

MARKED = re.compile(
    r'(<!-- files:(scores|speed|curve) -->\n).*?(<!-- /files -->)', re.DOTALL
)
FOLDER = 'projects/deployment/results'
# Scores above this are percentages, with two decimals.
LARGEST_SHARE = 1.5
Result = Mapping[str, Any]


def update_file_text(
    text: str, root: Path, families: Sequence[str], entries: Mapping[str, Any]
) -> str:
    """Return a README's text with all of these markers updated.

    Args:
        text: The README.
        root: The repository's top level.
        families: Patterns of the folders that have ``results``; not used.
        entries: All tables of quantized models; not used.
    """

    def shown(match: re.Match[str]) -> str:
        return match[1] + render(match[2], root=root) + match[3]

    return MARKED.sub(shown, text)


def render(kind: str, *, root: Path) -> str:
    """Return the table of a kind of results; a sentence without any."""
    paths = sorted((root / FOLDER / kind).glob('*.json'))
    results = [json.loads(p.read_text(encoding='utf-8')) for p in paths]
    if not results:
        return ABSENT
    tables = {
        'scores': render_scores,
        'speed': render_speed,
        'curve': render_curve,
    }
    return tables[kind](results) + '\n'


def render_scores(results: Sequence[Result]) -> str:
    """Compare files with their simulations.

    A simulation is completed with the grids that the export adds; results
    that lack it compare with that of the recipe alone.
    """
    lines = []
    for found in results:
        before, after = found['simulation'], found['file']
        completed = found.get('completed')
        expected = before if completed is None else completed
        within = found['within']
        lines.append(
            [
                found['name'],
                found['recipe'],
                found['metric'],
                str(found['test_images'] or 'all'),
                score(before),
                '' if completed is None else score(completed),
                score(after),
                f'{after - expected:+.{decimals(expected) + 1}f}',
                '' if within is None else f'{within:g}',
                layers(found['parts']),
            ]
        )
    return to_markdown(
        [
            'model',
            'recipe',
            'metric',
            'images',
            'simulation',
            'completed',
            'file',
            'difference',
            'accepted',
            'integer products',
        ],
        lines,
    )


def decimals(value: float) -> int:
    """Return with how many decimals a score is shown."""
    return 2 if abs(value) > LARGEST_SHARE else 3


def score(value: float) -> str:
    """Return a score as text."""
    return f'{value:.{decimals(value)}f}'


def layers(parts: Sequence[Result]) -> str:
    """Return how many products of a file run in integers, of how many."""
    if any(part['integer_layers'] is None for part in parts):
        return ''
    integer = sum(part['integer_layers'] for part in parts)
    floats = sum(len(part['float_layers']) for part in parts)
    return f'{integer} of {integer + floats}'


def render_speed(results: Sequence[Result]) -> str:
    """Show how many times as fast as the float file each file is."""
    lines = [line for found in results for line in speed_lines(found)]
    return to_markdown(
        [
            'model',
            'input',
            'runtime',
            'file',
            'CPU, ms',
            'speed, CPU',
            'threads: speed, wall',
            'load of cores',
            'KiB',
        ],
        lines,
    )


def speed_lines(found: Result) -> Iterator[list[str]]:
    """Yield a line for each file of a model.

    The load is the mean number of running processes, the largest of its runs:
    beyond the measured threads it is that of others.
    """
    first = found['runs'][0]
    loads = [run['load'] for run in found['runs'] if 'load' in run]
    load = f'{max(loads)} of {found["cores"]}' if loads else ''
    for i, timing in enumerate(first['timings']):
        name = timing['what']
        walls = [
            f'{run["threads"]}: {run["timings"][i]["wall_ratio"]:.2f}x'
            for run in found['runs']
        ]
        yield [
            found['name'],
            'x'.join(map(str, found['size'])),
            found['runtime'],
            name,
            f'{timing["cpu_ms"]:.1f}',
            f'{timing["cpu_ratio"]:.2f}x',
            ', '.join(walls),
            load,
            f'{found["files"][name]["file_bytes"] / 1024:.0f}',
        ]


def render_curve(results: Sequence[Result]) -> str:
    """Show score against speed."""
    lines = [
        [
            found['name'],
            point['what'],
            score(point['value']),
            share(point['value'], found['float']),
            f'{point["ratio"]:.2f}x',
        ]
        for found in results
        for point in sorted(found['points'], key=lambda p: p['ratio'])
    ]
    return to_markdown(
        ['model', 'file', found_metric(results), 'of float', 'speed'], lines
    )


def share(value: float, whole: float | None) -> str:
    """Return a score as a share of the float model's, if that is known."""
    return '' if whole is None else f'{100 * value / whole:.1f} %'


def found_metric(results: Sequence[Result]) -> str:
    """Return the heading of a column of scores."""
    names = dict.fromkeys(found['metric'] for found in results)
    return ', '.join(names)
