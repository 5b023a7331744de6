"""Compare the relative losses of two models under the same quantization.

A README shows them between ``<!-- losses:<one table> <other table> <header>
-->`` and ``<!-- /losses -->``; the header is that of a column, e.g. AP75 (with
``_`` for spaces).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskptq.bench.markdown import groups, to_markdown
from taskptq.bench.results import Results, float_summary, summary_of
from taskptq.bench.table import Table

# Smallest loss of the other model that makes a ratio meaningful.
DISCRIMINATING = 0.10
TARGET = 0.7


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Relative losses at one bit width by one method.

    Args:
        bits: Bit widths.
        method: Name of the method.
        scope: ``model`` or ``head``.
        one: 1 - value / float of the first model.
        other: 1 - value / float of the other model.
        num_seeds: Number of seeds, the smaller one of the two.
    """

    bits: str
    method: str
    scope: str
    one: float
    other: float
    num_seeds: int

    @property
    def ratio(self) -> float | None:
        """Ratio to the other's loss; None if that is too small."""
        if self.other < DISCRIMINATING:
            return None
        return self.one / self.other


def relative_losses(
    one: Results, other: Results, *, metric: str
) -> list[Loss]:
    """Compare all rows that both models have.

    Args:
        one: Results of the first model.
        other: Results of the other model.
        metric: Field or metric of a row.

    Returns:
        The losses, most bits first; rows without the metric are omitted.
    """
    references = [
        float_summary(results, metric=metric) for results in (one, other)
    ]
    if None in references or not all(r.mean for r in references):
        return []
    found = []
    for bits, method, _ in groups(one):
        pair = [
            summary_of(results, method=method, bits=bits, metric=metric)
            for results in (one, other)
        ]
        if None in pair:
            continue
        losses = [
            1 - summary.mean / reference.mean
            for summary, reference in zip(pair, references, strict=True)
        ]
        found.append(
            Loss(
                bits=bits,
                method=method,
                scope=pair[0].rows[0].get('scope') or 'model',
                one=losses[0],
                other=losses[1],
                num_seeds=min(summary.num_seeds for summary in pair),
            )
        )
    return found


def metric_of(table: Table, header: str) -> str:
    """Return the metric behind a column's header.

    Args:
        table: Table with the column.
        header: Header with ``_`` for spaces.

    Raises:
        ValueError: If the table has no such column.
    """
    columns: Mapping[str, str] = {
        title.replace(' ', '_'): key for title, key in table.columns.items()
    }
    if header not in columns:
        raise ValueError(
            f'{table.path} has no column {header!r}; it has '
            f'{", ".join(columns)}'
        )
    return columns[header]


def render_losses(losses: Sequence[Loss], *, names: Sequence[str]) -> str:
    """Return the comparison as Markdown, ending in a newline.

    Args:
        losses: From :func:`relative_losses`.
        names: Names of the first and of the other model.
    """
    header = [
        'bits',
        'method',
        'scope',
        f'{names[0]} loses',
        f'{names[1]} loses',
        'ratio',
        f'at most {TARGET}',
        'seeds',
    ]
    lines = [
        [
            loss.bits,
            loss.method,
            loss.scope,
            f'{loss.one:.1%}',
            f'{loss.other:.1%}',
            '' if loss.ratio is None else f'{loss.ratio:.2f}',
            verdict(loss),
            str(loss.num_seeds),
        ]
        for loss in losses
    ]
    return to_markdown(header, lines) + '\n'


def verdict(loss: Loss) -> str:
    """Return whether the target is met, if it applies."""
    if loss.ratio is None:
        return ''
    return 'yes' if loss.ratio <= TARGET else 'no'


def render_pair(
    entries: Mapping[str, Any], name: str, words: Sequence[str]
) -> str | None:
    """Return the text between the markers; None if not measured yet.

    Args:
        entries: Name of a table -> entry with ``table`` and ``results``.
        name: Table of the first model.
        words: Name of the other table, and the header.

    Raises:
        ValueError: If the words are not a table and a header.
    """
    if len(words) != 2:
        raise ValueError(
            f'a marker losses:{name} names {" ".join(words)!r}: '
            'give another table and the header of a column'
        )
    for table in (name, words[0]):
        if table not in entries:
            raise ValueError(f'there is no table {table!r}')
    one, other = entries[name], entries[words[0]]
    metric = metric_of(one.table, words[1])
    if one.results is None or other.results is None:
        return None
    losses = relative_losses(one.results, other.results, metric=metric)
    if not losses:
        return None
    names = [entry.table.model.rpartition('_')[2] for entry in (one, other)]
    return render_losses(losses, names=names)
