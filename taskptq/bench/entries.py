"""All tables of the repository, with their results and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from taskptq.bench.results import Results, load_results
from taskptq.bench.table import SUFFIX, Table, read_table
from taskptq.bench.target_sets import SUFFIX as SET_SUFFIX
from taskptq.bench.target_sets import Member, TargetSet, read_target_set

FAMILIES = ('configs/*', 'projects/*/configs', 'projects/*/configs/*')


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A table and its results, or None if nothing is measured yet."""

    table: Table
    results: Results | None


@dataclass(frozen=True, kw_only=True)
class EntrySet:
    """Targets over several tables."""

    targets: TargetSet
    members: Sequence[Member]


def find_entries(root: Path) -> dict[str, Entry]:
    """Read all tables below the repository's top level.

    Args:
        root: The top level.

    Raises:
        ValueError: If two tables share a name; see also ``read_table``.
    """
    entries: dict[str, Entry] = {}
    for pattern in FAMILIES:
        for path in sorted(root.glob(f'{pattern}/*{SUFFIX}')):
            table = read_table(path)
            if table.name in entries:
                raise ValueError(
                    f'there are two tables {table.name}: {path} '
                    f'and {entries[table.name].table.path}'
                )
            entries[table.name] = Entry(
                table=table, results=load_results(table.results)
            )
    return entries


def find_sets(root: Path, entries: Mapping[str, Entry]) -> dict[str, EntrySet]:
    """Read all sets of targets below the repository's top level.

    Args:
        root: The top level.
        entries: All tables.

    Raises:
        ValueError: If a set has the name of a table or of another set, or
            names no table.
    """
    sets: dict[str, EntrySet] = {}
    for pattern in FAMILIES:
        for path in sorted(root.glob(f'{pattern}/*{SET_SUFFIX}')):
            found = read_target_set(path)
            unknown = [name for name in found.tables if name not in entries]
            if unknown:
                raise ValueError(f'{path}: there is no table {unknown[0]!r}')
            if found.name in {*entries, *sets}:
                raise ValueError(f'{path}: there is another {found.name}')
            sets[found.name] = EntrySet(
                targets=found,
                members=[
                    Member(
                        table=entries[name].table,
                        results=entries[name].results,
                        bits=bits or entries[name].table.discriminating,
                    )
                    for name, bits in found.tables.items()
                ],
            )
    return sets
