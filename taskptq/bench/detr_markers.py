"""Markers of README files for reports on DETRs.

``progressive``, ``sensitivity-ap``, ``queries`` and ``alignment`` have the
form of ``collect_results.py``'s markers and show
``configs/<family>/results/<name>.json``, written by ``detr_report.py``.
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
    r'(<!-- (progressive|sensitivity-ap|queries|alignment):(\S+) -->\n)'
    r'.*?(<!-- /\2 -->)',
    re.DOTALL,
)
Report = Mapping[str, Any]


def update_detr_text(
    text: str, root: Path, families: Sequence[str], entries: Mapping[str, Any]
) -> str:
    """Return a README's text with all of these markers updated.

    Args:
        text: The README.
        root: The repository's top level.
        families: Patterns of the folders that have ``results``.
        entries: All tables of quantized models; not used.

    Raises:
        ValueError: If the file of a marker is another kind of report.
    """

    def shown(match: re.Match[str]) -> str:
        found = render_report(match[2], match[3], root=root, families=families)
        return match[1] + (found or ABSENT) + match[4]

    return MARKED.sub(shown, text)


def render_report(
    kind: str, name: str, *, root: Path, families: Sequence[str]
) -> str | None:
    """Return a report of ``detr_report.py``; None if not measured yet.

    Raises:
        ValueError: If the file is another kind of report.
    """
    paths = [
        path
        for family in families
        for path in root.glob(f'{family}/results/{name}.json')
    ]
    if not paths:
        return None
    report = json.loads(paths[0].read_text(encoding='utf-8'))
    what, render = {
        'progressive': ('progressive', render_progressive),
        'sensitivity-ap': ('sensitivity', render_sensitivity),
        'queries': ('queries', render_queries),
        'alignment': ('alignment', render_alignment),
    }[kind]
    if report.get('what') != what:
        raise ValueError(
            f'{paths[0]} is a report of {report.get("what")!r}, '
            f'but a marker {kind} shows it'
        )
    return render(report)


def render_progressive(report: Report) -> str:
    """Return a line for each step, float first."""
    columns = columns_of(report)
    reference = report['float']
    lines = [['float', '0', *cells(reference, columns), '100.0%']]
    lines += [
        [
            step['step'],
            str(step['num_quantized']),
            *cells(step, columns),
            share(step['value'], reference['value']),
        ]
        for step in report['steps']
    ]
    table = to_markdown(['quantized', 'modules', *columns, 'of float'], lines)
    return f'{table}\n\n{conditions(report)}\n'


def render_sensitivity(report: Report) -> str:
    """Return a line for each group, the largest loss first."""
    columns = columns_of(report)
    reference = report['float']
    ordered = sorted(
        report['groups'].items(),
        key=lambda item: item[1]['lost'],
        reverse=True,
    )
    lines = [
        [
            group,
            str(found['num_quantized']),
            *(
                decimals(difference(reference, found, key))
                for key in columns.values()
            ),
        ]
        for group, found in ordered
    ]
    table = to_markdown(
        [
            'quantized alone',
            'modules',
            *(f'{title} lost' for title in columns),
        ],
        lines,
    )
    return f'{table}\n\n{conditions(report)}\n'


def render_queries(report: Report) -> str:
    """Return a line for each attention and model."""
    lines = [
        line
        for name, layer in report['layers'].items()
        for line in query_lines(name, layer['stages'])
    ]
    table = to_markdown(
        [
            'queries of',
            'model',
            'mean',
            'std',
            'means of heads',
            'stds of heads',
            'entropy, bits',
            'codes',
        ],
        lines,
    )
    return f'{table}\n\nOn {report["num_images"]} evaluated images.\n'


def query_lines(name: str, stages: Report) -> Iterator[list[str]]:
    """Yield a line for each model."""
    for title, found in stages.items():
        is_float = found['num_bits'] is None
        yield [
            name,
            title,
            decimals(found['mean']),
            decimals(found['std']),
            span(found['head_means']),
            span(found['head_stds']),
            ''
            if is_float
            else f'{found["entropy"]:.2f} of {found["num_bits"]}',
            '' if is_float else str(found['num_codes']),
        ]


def render_alignment(report: Report) -> str:
    """Return the lines of the float model, without and with alignment."""
    columns = columns_of(report)
    reference, aligned = report['float'], report['aligned']
    lines = [
        ['float', *cells(reference, columns), '100.0%'],
        [
            'aligned queries, nothing rounded',
            *cells(aligned, columns),
            share(aligned['value'], reference['value']),
        ],
    ]
    return to_markdown(['model', *columns, 'of float'], lines) + '\n'


def columns_of(report: Report) -> dict[str, str]:
    """Return header -> key of ``metrics``; at least the metric."""
    return dict(report['columns']) or {report['metric']: report['metric']}


def conditions(report: Report) -> str:
    """Return the bits and method of the parts, and the missing parts."""
    text = f'At {report["bits"].upper()} by `{report["method"]}`.'
    if report['absent']:
        text += f' The model has no {", no ".join(report["absent"])}.'
    return text


def difference(reference: Report, found: Report, key: str) -> float | None:
    """Return how much a metric fell; None if either lacks it."""
    values = [one['metrics'].get(key) for one in (reference, found)]
    return None if None in values else values[0] - values[1]


def cells(scores: Report, columns: Mapping[str, str]) -> list[str]:
    """Return the metrics of one model."""
    return [decimals(scores['metrics'].get(key)) for key in columns.values()]


def decimals(value: float | None) -> str:
    """Return three decimals, or nothing; no negative zero."""
    return '' if value is None else f'{round(value, 3) + 0.0:.3f}'


def share(value: float, reference: float) -> str:
    """Return a value as a percentage of float's."""
    return f'{value / reference:.1%}' if reference else ''


def span(values: Sequence[float]) -> str:
    """Return the minimum and maximum."""
    return f'{decimals(values[0])} to {decimals(values[1])}'
