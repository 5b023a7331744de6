"""The tables of a results file as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskptq.bench.markdown import to_markdown
from taskptq.bench.robustness.plan import CLEAN, COMBINED, FAMILIES
from taskptq.bench.robustness.summary import (
    means_by_kind,
    metric_of,
    row_named,
    summarize,
    values_of,
)

__all__ = ['factor_of', 'render', 'shown']

TITLES = {
    'systems': 'System noise',
    'corruptions': 'Corruptions',
    'attacks': 'Attacks',
}
NOTHING = '-'


def shown(value: float | None, *, factor: float = 1.0, sign: str = '') -> str:
    """Format a number with two digits, ``-`` for none."""
    if value is None:
        return NOTHING
    return f'{factor * value:{sign}.2f}'


def factor_of(content: Mapping[str, Any]) -> float:
    """Return 100 for metrics from 0 to 1, 1 for percentages."""
    clean = row_named(content, CLEAN)
    values = values_of(content, clean) if clean is not None else {}
    return 100.0 if all(abs(v) <= 1 for v in values.values()) else 1.0


def render(content: Mapping[str, Any]) -> str:
    """Return heading, summary and the tables of each family.

    Args:
        content: Of the results file.
    """
    names = [entry['name'] for entry in content['subjects']]
    parts = [
        f'# Robustness of {content["model"]}',
        f'{metric_of(content)} on {content["images"]} images, from '
        f'`{content["config"]}`, seed {content["seed"]}; values times '
        f'{factor_of(content):g}.',
        '\n'.join(f'    {run["command"]}' for run in content['runs']),
        time_line(content['runs']),
    ]
    for family in FAMILIES:
        rows = [r for r in content['rows'] if r['family'] == family]
        if rows:
            parts.append(f'## {TITLES[family]}')
            parts += filter(None, section(content, family, names))
    return '\n\n'.join(parts) + '\n'


def time_line(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return how long the runs took."""
    parts = []
    for run in runs:
        text = f'{run["seconds"]:.0f} s'
        if run['processes'] > 1:
            text += f' with {run["processes"]} processes'
        if 'processor_seconds' in run:
            text += f' ({run["processor_seconds"]:.0f} s of processors)'
        parts.append(text)
    return f'Took {", ".join(parts)}.'


def section(
    content: Mapping[str, Any], family: str, names: Sequence[str]
) -> Iterator[str]:
    """Yield the tables of a family."""
    if family == 'attacks':
        yield least_table(content, names)
    else:
        yield score_table(content, family, names)
        yield kind_table(content, family, names)
    if family != 'corruptions':
        yield row_table(content, family, names)
    yield reasons(content, family)


def score_table(
    content: Mapping[str, Any], family: str, names: Sequence[str]
) -> str:
    """Return P, mPC, rPC and the excess loss of each model."""
    summary = summarize(content).get(family, {})
    factor = factor_of(content)
    lines = []
    for name in names:
        found = summary.get(name)
        if found is None:
            continue
        share = found['relative']
        relative = [
            found.get('relative_loss_clean'),
            found.get('relative_loss_noise'),
        ]
        lines.append(
            [
                name,
                shown(found['clean'], factor=factor),
                shown(found['mean'], factor=factor),
                shown(share, factor=100) + (' %' if share is not None else ''),
                f'{shown(found["worst"], factor=factor)} '
                f'({found["worst_noise"]})',
                shown(found.get('loss_clean'), factor=factor, sign='+'),
                shown(found.get('loss_noise'), factor=factor, sign='+'),
                shown(found.get('excess'), factor=factor, sign='+'),
                ' / '.join(shown(v, factor=100, sign='+') for v in relative),
            ]
        )
    header = [
        'model',
        'clean (P)',
        'mean under noise (mPC)',
        'rPC',
        'worst',
        'loss to float, clean',
        'under noise',
        'excess',
        'relative loss, % (clean / noise)',
    ]
    return to_markdown(header, lines) if lines else ''


def kind_table(
    content: Mapping[str, Any], family: str, names: Sequence[str]
) -> str:
    """Return the mean (and greatest) loss of each model by kind of noise."""
    clean_row = row_named(content, CLEAN)
    if clean_row is None:
        return ''
    clean = values_of(content, clean_row)
    factor = factor_of(content)
    columns = {
        name: means_by_kind(content, family, name)
        for name in names
        if name in clean
    }
    kinds = dict.fromkeys(kind for found in columns.values() for kind in found)
    lines = []
    for kind in kinds:
        cells = [kind]
        for name, found in columns.items():
            losses = [clean[name] - value for value in found.get(kind, [])]
            cells.append(
                f'{shown(sum(losses) / len(losses), factor=factor)} '
                f'({shown(max(losses), factor=factor)})'
                if losses
                else NOTHING
            )
        lines.append(cells)
    header = ['loss: mean (greatest)', *columns]
    return to_markdown(header, lines) if lines else ''


def row_table(
    content: Mapping[str, Any], family: str, names: Sequence[str]
) -> str:
    """Return the metric and its loss against clean for each row."""
    clean_row = row_named(content, CLEAN)
    if clean_row is None:
        return ''
    clean = values_of(content, clean_row)
    factor = factor_of(content)
    lines = []
    for row in content['rows']:
        values = values_of(content, row)
        if row['family'] != family or not values:
            continue
        label = row['noise']
        if label == COMBINED:
            label += f' ({", ".join(row.get("of", []))})'
        lines.append([label])
        for name in names:
            if name not in values or name not in clean:
                lines[-1].append(NOTHING)
                continue
            loss = values[name] - clean[name]
            lines[-1].append(
                f'{shown(values[name], factor=factor)} '
                f'({shown(loss, factor=factor, sign="+")})'
            )
    return to_markdown(['noise', *names], lines) if lines else ''


def least_table(content: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return what holds under the worst attack of each budget."""
    summary = summarize(content).get('attacks', {})
    factor = factor_of(content)
    budgets = dict.fromkeys(
        budget for found in summary.values() for budget in found['least']
    )
    lines = [
        [
            name,
            shown(summary[name]['clean'], factor=factor),
            *(
                shown(summary[name]['least'].get(budget), factor=factor)
                for budget in budgets
            ),
        ]
        for name in names
        if name in summary
    ]
    header = ['model', 'clean', *(f'least at {b}/255' for b in budgets)]
    return to_markdown(header, lines) if lines else ''


def reasons(content: Mapping[str, Any], family: str) -> str:
    """Return the rows that are not applicable, each with its reason."""
    found: dict[str, list[str]] = {}
    for row in content['rows']:
        if row['family'] != family:
            continue
        for name, result in row['results'].items():
            if 'reason' in result:
                key = f'{row["noise"]}: {result["reason"]}'
                found.setdefault(key, []).append(name)
    if not found:
        return ''
    lines = [
        f'- {key}' + ('' if len(models) > 1 else f' ({models[0]})')
        for key, models in found.items()
    ]
    return '\n'.join(['Not applicable:', '', *lines])
