"""The page of small files: tables of all rows, and what they say."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from taskptq.bench.recipe_rows import read_file
from taskptq.bench.size_plot import draw_sizes

__all__ = [
    'BEGIN',
    'END',
    'Point',
    'page_lines',
    'points_of',
    'sparse_points',
    'write_page',
]

BEGIN, END = '<!-- size rows: begin -->', '<!-- size rows: end -->'
PICTURE = 'pareto.svg'
DENSE, CODED = 'dense codes', 'entropy-coded'
SIZED, SPARSE = 'steps for a size', 'sparse'
SIZED_TRAINED = 'steps for a size, trained'


class Point(NamedTuple):
    """One file of a model.

    Attributes:
        series: What made it.
        name: Recipe.
        ratio: How many times smaller than float32.
        share: Metric as a share of the float model's, mean of the seeds.
    """

    series: str
    name: str
    ratio: float
    share: float


class _Group(NamedTuple):
    recipe: str
    images: int
    rows: Sequence[Mapping[str, Any]]

    def mean(self, key: str) -> float:
        return statistics.mean(row[key] for row in self.sized)

    @property
    def value(self) -> float:
        return statistics.mean(row['value'] for row in self.rows)

    @property
    def coded(self) -> bool:
        return any(row['coded_bytes'] is not None for row in self.rows)

    @property
    def sized(self) -> Sequence[Mapping[str, Any]]:
        """Rows whose size counts: of those with a coder, only these."""
        if not self.coded:
            return self.rows
        return [row for row in self.rows if row['coded_bytes'] is not None]

    @property
    def bytes(self) -> float:
        return self.mean('coded_bytes' if self.coded else 'file_bytes')

    def coding(self) -> str:
        """Return the columns on what a coder takes."""
        ratio = f'{self.mean("ratio"):.2f}x'
        if not self.coded:
            return f' | {ratio} |  | '
        weights = [row['weights'] for row in self.sized]
        spent = sum(one['coded_bytes'] for one in weights)
        bits = 8 * spent / sum(one['codes'] for one in weights)
        excess = spent / sum(one['entropy_bytes'] for one in weights)
        kilobytes = f'{self.mean("coded_bytes") / 1e3:.0f}'
        return f'{kilobytes} | {ratio} | {bits:.2f} | {excess:.3f}'

    def seconds(self) -> str:
        known = [row['cpu_seconds'] for row in self.rows]
        if None in known:
            return ''
        return f'{statistics.mean(known):.0f}'


def _groups(stored: Mapping[str, Any]) -> list[_Group]:
    found: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in stored['rows']:
        found.setdefault((row['recipe'], row['images']), []).append(row)
    groups = [
        _Group(name, images, rows) for (name, images), rows in found.items()
    ]
    return sorted(groups, key=lambda group: -group.bytes)


def series_of(recipe: str) -> str:
    """Return what makes the files of a recipe small.

    >>> series_of('w8a8_size10x'), series_of('w4a8_gptq')
    ('steps for a size', 'entropy-coded')
    """
    if 'sparse' in recipe:
        return SPARSE
    if 'size-trained' in recipe:
        return SIZED_TRAINED
    return SIZED if '_size' in recipe else CODED


def points_of(stored: Mapping[str, Any]) -> list[Point]:
    """Return the points of a model's picture.

    Files of usual grids are two points, with dense codes and coded.
    """
    full = stored['float']['value']
    points = []
    for group in _groups(stored):
        share = group.value / full
        ratio = group.mean('ratio')
        series = series_of(group.recipe) if group.coded else DENSE
        points.append(Point(series, group.recipe, ratio, share))
        if series == CODED:
            dense = ratio * group.mean('coded_bytes')
            dense /= group.mean('file_bytes')
            points.append(Point(DENSE, group.recipe, dense, share))
    return points


def page_lines(stored: Mapping[str, Any]) -> list[str]:
    """Return a model's table; seeds are averaged, with their spread."""
    full = stored['float']['value']
    lines = [
        f'### {stored["model"]}, {stored["dataset"]}',
        '',
        f'{stored["metric"]}, float {full:.4g}.',
        '',
        '| recipe | images | seeds | value | of float | dense kB | coded kB '
        '| smaller | bits per weight | coder / entropy | CPU s |',
        '|---|---|---|---|---|---|---|---|---|---|---|',
    ]
    for group in _groups(stored):
        values = [row['value'] for row in group.rows]
        mean = statistics.mean(values)
        spread = f' ± {statistics.stdev(values):.2g}' if values[1:] else ''
        dense = (
            f'{group.mean("file_bytes") / 1e3:.0f}'
            if series_of(group.recipe) == CODED
            else ''
        )
        lines.append(
            f'| `{group.recipe}` | {group.images} | {len(values)} '
            f'| {mean:.4g}{spread} | {mean / full:.1%} | {dense} '
            f'| {group.coding()} | {group.seconds()} |'
        )
    return [*lines, '']


def sparse_points(
    stored: Mapping[str, Any], *, sparse: Mapping[str, Any]
) -> list[Point]:
    """Return the points of sparse models, which have a page of their own.

    Args:
        stored: Rows of the model's small files.
        sparse: Rows of its sparse ones.
    """
    first = _groups(stored)[0]
    full_bytes = first.mean('ratio') * first.bytes
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in sparse['rows']:
        found.setdefault(row['recipe'], []).append(row)
    return [
        Point(
            SPARSE,
            name,
            full_bytes / statistics.mean(row['file_bytes'] for row in rows),
            statistics.mean(row['value'] for row in rows)
            / sparse['float']['value'],
        )
        for name, rows in found.items()
    ]


def write_page(folder: Path) -> Path:
    """Replace the tables of ``RESULTS.md``, and draw the picture anew.

    Args:
        folder: Of the files of rows and of the page, which has the marks.
    """
    page = folder / 'RESULTS.md'
    text = page.read_text(encoding='utf-8')
    models = [read_file(path) for path in sorted(folder.glob('*.json'))]
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    body = '\n'.join(_lines(models)).rstrip()
    page.write_text(
        f'{before}{BEGIN}\n\n{body}\n\n{END}{after}', encoding='utf-8'
    )
    other = folder.parent / 'sparsity'
    draw_sizes(
        {
            f'{one["model"]}, {one["dataset"]}': [
                *points_of(one),
                *sparse_points(
                    one,
                    sparse=read_file(
                        other / f'{one["model"]}_{one["dataset"]}.json'
                    ),
                ),
            ]
            for one in models
        },
        folder / PICTURE,
    )
    return page


def _lines(models: Iterable[Mapping[str, Any]]) -> list[str]:
    return [line for stored in models for line in page_lines(stored)]
