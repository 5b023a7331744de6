"""README markers for the reports of ``make_report.py``.

``grid-error``, ``grid-choice``, ``gradients``, ``head-cost`` and
``branches`` read ``configs/<family>/results/<name>.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.markdown import to_markdown
from taskptq.bench.training_table import ABSENT

MARKED = re.compile(
    r'(<!-- (grid-error|grid-choice|gradients|head-cost|branches):'
    r'(\S+) -->\n).*?(<!-- /\2 -->)',
    re.DOTALL,
)
SMALL = 'small'
Report = Mapping[str, Any]


def update_grid_text(
    text: str, root: Path, families: Sequence[str], entries: Mapping[str, Any]
) -> str:
    """Return a README's text with all of these markers updated.

    Args:
        text: The README.
        root: The repository's top level.
        families: Patterns of the folders that have ``results``.
        entries: All tables of quantized models; not used.
    """

    def shown(match: re.Match[str]) -> str:
        found = render_report(match[2], match[3], root=root, families=families)
        return match[1] + (found or ABSENT) + match[4]

    return MARKED.sub(shown, text)


def render_report(
    kind: str, name: str, *, root: Path, families: Sequence[str]
) -> str | None:
    """Return a report of ``make_report.py``; None if not measured yet."""
    paths = [
        path
        for family in families
        for path in root.glob(f'{family}/results/{name}.json')
    ]
    if not paths:
        return None
    report = json.loads(paths[0].read_text(encoding='utf-8'))
    render = {
        'grid-error': render_errors,
        'grid-choice': render_choice,
        'gradients': render_gradients,
        'head-cost': render_cost,
        'branches': render_branches,
    }[kind]
    return render(report) + '\n'


def render_errors(report: Report) -> str:
    """Compare predicted and measured errors of each head."""
    lines = [
        line
        for name, head in report['heads'].items()
        for line in error_lines(name, head)
    ]
    return to_markdown(
        [
            'head',
            'quantized',
            'predicted',
            'measured',
            'ratio',
            'worst bin',
            'correlation',
            'direct',
            'box, px',
        ],
        lines,
    )


def error_lines(name: str, head: Report) -> Iterator[list[str]]:
    """Yield a line for each bit width and each quantized model."""
    for bits, found in head['rounded'].items():
        yield [
            name,
            f'logits, {bits} bits',
            *numbers(found),
            f'{found["direct"]:.4f}',
            f'{head["boxes"][bits]["measured"]:.2f}',
        ]
    for recipe, found in head['layers'].items():
        yield [
            name,
            recipe,
            *numbers(found['coordinates']),
            '',
            f'{found["boxes"]["measured"]:.2f}',
        ]


def numbers(found: Report) -> list[str]:
    """Return the cells of one comparison."""
    return [
        f'{found["predicted"]:.4f}',
        f'{found["measured"]:.4f}',
        *(as_cell(found[key]) for key in ('ratio', 'worst', 'correlation')),
    ]


def as_cell(value: float | None) -> str:
    """Return two decimals, or nothing."""
    return '' if value is None else f'{value:.2f}'


def render_choice(report: Report) -> str:
    """Return the best grids of each head and the grid in use."""
    lines = []
    for name, head in report['heads'].items():
        rows = [
            (str(place), found)
            for place, found in enumerate(head['best'][:5], start=1)
        ]
        rows.append(
            (f'in use ({head["rank"]} of {head["candidates"]})', head['used'])
        )
        lines += [
            [
                name,
                place,
                f'{found["alpha"]:g}',
                f'{found["beta"]:.3g}',
                str(found['num_intervals']),
                f'{found["rounding"]:.4f}',
                f'{found["clipping"]:.4f}',
                f'{found["total"]:.4f}',
            ]
            for place, found in rows
        ]
    return to_markdown(
        [
            'head',
            'rank',
            'alpha',
            'beta',
            'intervals',
            'rounding',
            'clipping',
            'both',
        ],
        lines,
    )


def render_gradients(report: Report) -> str:
    """Return each model's gradient noise of small boxes, and the ratio."""
    lines = []
    for model in report['models']:
        for name, groups in model['layers'].items():
            found = groups[SMALL]
            ratios = (
                model.get('first_over_this', {}).get(name, {}).get(SMALL, {})
            )
            lines.append(
                [
                    Path(model['config']).stem,
                    name.rpartition('.')[2],
                    str(found['count']),
                    as_cell(found['relative_variance']),
                    as_cell(found['norm_spread']),
                    as_cell(ratios.get('norm_spread')),
                    exponent(found['variance']),
                    as_cell(ratios.get('variance')),
                ]
            )
    return to_markdown(
        [
            'model',
            'layer',
            'small boxes',
            'variance / power',
            'spread of the norm',
            'first / this',
            'variance',
            'first / this',
        ],
        lines,
    )


def render_cost(report: Report) -> str:
    """Return the time of each model's heads."""
    lines = [
        [
            Path(model['config']).stem,
            f'{1000 * model["head_seconds"]:.0f}',
            f'{model["ratio"]:.2f}',
        ]
        for model in report['models']
    ]
    return to_markdown(['model', 'heads, CPU ms', 'to the first'], lines)


# Header's word -> key of a row.
BRANCHES = {'both': 'quantized', 'scores': 'scores', 'boxes': 'boxes'}


def render_branches(report: Report) -> str:
    """Return scores of float models, quantized ones, and mixtures."""
    columns = list(report['models'][0]['float'])
    lines = []
    for model in report['models']:
        name = model['table'].rpartition('_')[0]
        lines.append([name, 'float', '', *decimals(model['float'], columns)])
        lines += [
            [
                name,
                row['row'].replace('_', ' '),
                title,
                *decimals(row[key], columns),
            ]
            for row in model['rows']
            for title, key in BRANCHES.items()
        ]
    return to_markdown(['model', 'row', 'quantized', *columns], lines)


def decimals(
    values: Mapping[str, float | None], columns: Sequence[str]
) -> list[str]:
    """Return three decimals of each column, or nothing."""
    return [
        '' if values.get(key) is None else f'{values[key]:.3f}'
        for key in columns
    ]


def exponent(value: float | None) -> str:
    """Return two digits and a power of ten, or nothing."""
    return '' if value is None else f'{value:.1e}'
