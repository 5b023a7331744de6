"""Files of measured results: reading, writing, mean and spread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Results = dict[str, Any]


def load_results(path: Path) -> Results | None:
    """Read a results file, None if there is none."""
    if not path.is_file():
        return None
    content: Results = json.loads(path.read_text(encoding='utf-8'))
    return content


def save_results(results: Results, path: Path) -> None:
    """Write a results file atomically.

    Args:
        results: Plain types; numbers must be finite.
        path: The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False) + '\n'
    part = path.with_name(path.name + '.part')
    part.write_text(text, encoding='utf-8')
    part.replace(path)


def row_name(row: Mapping[str, Any]) -> str:
    """Return ``<method> <bits> <seed>`` of a measured row."""
    return f'{row["method"]} {row["bits"]} {row["seed"]}'


def put_row(
    results: Results, row: Mapping[str, Any], *, order: Sequence[str]
) -> None:
    """Add a measured row, or replace the row of the same name.

    Args:
        results: Changed in place.
        row: The measured row.
        order: Names of the table's rows; other rows come after them.
    """
    rows = {row_name(old): old for old in results['rows']}
    rows[row_name(row)] = dict(row)
    places = {name: place for place, name in enumerate(order)}
    results['rows'] = sorted(
        rows.values(), key=lambda item: places.get(row_name(item), len(places))
    )


def float_rows(results: Results) -> list[dict[str, Any]]:
    """Return the float measurements, one for each training seed."""
    found = results.get('float')
    if not found:
        return []
    return list(found) if isinstance(found, list) else [found]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of the seeds of one method at one bit width.

    Args:
        mean: Mean of the values.
        spread: Largest value minus smallest; 0 for a single seed.
        num_seeds: Number of values.
        rows: The measured rows.
    """

    mean: float
    spread: float
    num_seeds: int
    rows: Sequence[Mapping[str, Any]]

    def average(self, key: str) -> float | None:
        """Return the mean of a field or metric; None if no row has it."""
        found = [lookup(row, key) for row in self.rows]
        numbers = [value for value in found if value is not None]
        return sum(numbers) / len(numbers) if numbers else None


def lookup(row: Mapping[str, Any], key: str) -> float | None:
    """Return a field or metric of a row; None if it has none."""
    value = row[key] if key in row else row.get('metrics', {}).get(key)
    return None if value is None else float(value)


def summarize(
    rows: Sequence[Mapping[str, Any]], *, metric: str | None = None
) -> Summary | None:
    """Summarize rows that differ only in their seeds.

    Args:
        rows: The rows.
        metric: Field or metric to summarize; None is their value.

    Returns:
        The summary; None without rows, or if one lacks the metric.
    """
    found = [lookup(row, metric or 'value') for row in rows]
    values = [value for value in found if value is not None]
    if not values or len(values) < len(found):
        return None
    return Summary(
        mean=sum(values) / len(values),
        spread=max(values) - min(values),
        num_seeds=len(values),
        rows=list(rows),
    )


def summary_of(
    results: Results, *, method: str, bits: str, metric: str | None = None
) -> Summary | None:
    """Summarize one method at one bit width; None if not measured."""
    return summarize(
        [
            row
            for row in results['rows']
            if row['method'] == method and row['bits'] == bits
        ],
        metric=metric,
    )


def float_summary(
    results: Results, *, metric: str | None = None
) -> Summary | None:
    """Summarize the float model; None if not measured."""
    return summarize(float_rows(results), metric=metric)
