"""Targets over several tables: means over models.

A ``<name>.targets.yml`` next to the tables has

- ``tables``: their names, or name -> bits at which its methods are compared;
  by default the table's ``discriminating`` bits,
- ``targets``: as in a table (see ``targets.py``), with one ``method`` each.
  Means, spreads and the float model's values are averaged over the tables;
  without ``metric``, each table's own value counts. ``bits`` of a target
  override the tables'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from taskptq.bench.results import Results, Summary
from taskptq.bench.table import Table
from taskptq.bench.targets import (
    FLOAT,
    Target,
    bits_of,
    describe,
    evaluate,
    measured_of,
    names,
)

SUFFIX = '.targets.yml'
KEYS = ('tables', 'targets')
OTHERS = ('above', 'against', 'not_below', 'max_ratio_to', 'min_gain_over')


@dataclass(frozen=True, kw_only=True)
class TargetSet:
    """Contents of a ``*.targets.yml``.

    Args:
        path: The file.
        tables: Name of a table -> bits, None for those of the table.
        targets: See the module.
    """

    path: Path
    tables: Mapping[str, str | None]
    targets: Sequence[Target]

    @property
    def name(self) -> str:
        """Return the file's name without its suffix."""
        return self.path.name.removesuffix(SUFFIX)


@dataclass(frozen=True, kw_only=True)
class Member:
    """One table of a set.

    Args:
        table: The table.
        results: Its results; None if there are none yet.
        bits: Bits at which its methods are compared.
    """

    table: Table
    results: Results | None
    bits: str | None

    def look(self, method: str, target: Target) -> Summary | None:
        """Summarize the results of a method; None if not measured."""
        if self.results is None:
            return None
        bits = bits_of(target, default=self.bits)
        return measured_of(
            self.results, method=method, bits=bits, metric=target.get('metric')
        )


def read_target_set(path: Path) -> TargetSet:
    """Read a ``*.targets.yml``.

    Args:
        path: The file.

    Raises:
        ValueError: If a key is unknown or missing, or a target names several
            methods.
    """
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    if sorted(content) != sorted(KEYS):
        raise ValueError(
            f'{path} has the keys {sorted(content)}: give {", ".join(KEYS)}'
        )
    for target in content['targets']:
        if not isinstance(target['method'], str):
            raise ValueError(
                f'{path}: target {target.get("name")!r} names '
                'several methods: give one'
            )
    tables = content['tables']
    if not isinstance(tables, Mapping):
        tables = dict.fromkeys(tables)
    return TargetSet(path=path, tables=tables, targets=content['targets'])


def evaluate_set(target: Target, members: Sequence[Member]) -> dict[str, Any]:
    """Compare one target with means over tables.

    Args:
        target: See the module.
        members: The tables.

    Returns:
        The outcome as from ``evaluate_targets``, plus ``tables``, the number
        of tables with all compared results, and ``of_tables``; ``status`` is
        ``partial`` if some tables lack results.
    """
    needed = {target['method'], *needed_by(target)}
    usable = [
        member
        for member in members
        if all(member.look(method, target) for method in needed)
    ]

    def look(method: str) -> Summary | None:
        return average([member.look(method, target) for member in usable])

    bits = {bits_of(target, default=member.bits or '?') for member in members}
    record = evaluate(target, look=look, bits='/'.join(sorted(bits)))
    record |= {'tables': len(usable), 'of_tables': len(members)}
    if usable and len(usable) < len(members):
        record['status'] = 'partial'
    return record


def needed_by(target: Target) -> list[str]:
    """Return the methods that a target compares with."""
    found = [
        name for key in OTHERS if key in target for name in names(target[key])
    ]
    return found or ([] if 'min_value' in target else [FLOAT])


def average(summaries: Sequence[Summary | None]) -> Summary | None:
    """Average the results of one method over several tables."""
    found = [summary for summary in summaries if summary is not None]
    if not found:
        return None
    return Summary(
        mean=sum(one.mean for one in found) / len(found),
        spread=sum(one.spread for one in found) / len(found),
        num_seeds=min(one.num_seeds for one in found),
        rows=[],
    )


def describe_set(record: Mapping[str, Any]) -> str:
    """Return a target's outcome as one line.

    Args:
        record: From :func:`evaluate_set`.
    """
    text = describe(record)
    if not record['tables']:
        return text
    return (
        f'{text} (mean over {record["tables"]} of '
        f'{record["of_tables"]} models)'
    )
