"""Render the text between the two lines of a marker in a Markdown file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from taskptq.bench.attention_markers import (
    bimodal_entries,
    pick_row,
    render_baselines,
    render_peaks,
    render_softmax,
)
from taskptq.bench.entries import Entry, EntrySet
from taskptq.bench.markdown import (
    first_measured,
    render_benchmarks,
    render_results,
    render_summary,
)
from taskptq.bench.results import Results, summary_of
from taskptq.bench.table import SUFFIX, Table
from taskptq.bench.target_sets import describe_set, evaluate_set
from taskptq.bench.targets import describe, evaluate_targets

KINDS = ('table', 'rows', 'models', 'targets', 'baselines', 'softmax', 'peaks')
SUMMARY = 'summary'
BENCHMARKS = 'benchmarks'
BENCHMARK_RESULTS = 'tools/benchmarks/results/*.json'
# What plain names such as w8a8 stand for, else what comes nearest.
SUMMARY_CELLS = (
    ('w8a8', 'mixed|mse-depthwise|mse'),
    ('w4a8', 'mixed-weighted|mixed-matched|gptq-weighted|gptq-matched|gptq'),
    ('w4a4', 'mixed-weighted|mixed-matched|gptq-weighted|qdrop|gptq'),
)
ABSENT = 'Not measured yet.\n'
# Markers that show one row: data that the row must have, and its renderer.
ROW_KINDS = {
    'softmax': (lambda row: row.get('softmax'), render_softmax),
    'peaks': (bimodal_entries, render_peaks),
}


def render(
    kind: str,
    name: str,
    entries: Mapping[str, Entry],
    *,
    row: Sequence[str] = (),
    sets: Mapping[str, EntrySet] | None = None,
    root: Path = Path(),
) -> str:
    """Return the text between two markers, ending in a newline.

    Args:
        kind: One of ``KINDS``.
        name: ``<model>_<dataset>``, ``summary``, or a folder.
        entries: All tables.
        row: Words of the marker: method, bits and optionally seed for
            ``softmax`` and ``peaks``, recipes for ``rows`` and ``models``.
        sets: All sets of targets.
        root: The repository's top level.

    Raises:
        ValueError: If the table does not exist, a row is named but not
            allowed, or its name is malformed.
    """
    if kind == 'models':
        return render_models(
            entries_below(root / name, entries), cells_of(row)
        )
    if row and kind not in (*ROW_KINDS, 'rows'):
        raise ValueError(
            f'a marker {kind}:{name} names the row '
            f'{" ".join(row)!r}: leave it out'
        )
    if kind == 'table' and name in (SUMMARY, BENCHMARKS):
        return render_all(name, entries, root=root)
    if kind == 'targets' and sets and name in sets:
        return as_list(set_lines(sets[name]))
    if name not in entries:
        raise ValueError(
            f'there is no table {name!r} (no {name}{SUFFIX}); known are '
            f'{", ".join(entries)}'
        )
    return render_entry(kind, entries[name], row=row)


def render_entry(kind: str, entry: Entry, *, row: Sequence[str]) -> str:
    """Return the text of a marker for one model's results."""
    if entry.results is None:
        return ABSENT
    if kind == 'targets':
        return as_list(target_lines(entry))
    if kind == 'baselines':
        return render_baselines(entry.results)
    if kind in ROW_KINDS:
        has, renderer = ROW_KINDS[kind]
        found = pick_row(entry.results, row, has=has)
        return ABSENT if found is None else renderer(found)
    if kind == 'rows':
        return render_rows(entry.table, entry.results, cells_of(row))
    return render_table(entry.table, entry.results)


def render_all(name: str, entries: Mapping[str, Entry], *, root: Path) -> str:
    """Return the table of all models, or of the benchmarks."""
    if name == BENCHMARKS:
        files = sorted(root.glob(BENCHMARK_RESULTS))
        records = [json.loads(file.read_text('utf-8')) for file in files]
        return render_benchmarks(records) + '\n' if records else ABSENT
    # Weights that others trained tell most.
    ordered = sorted(entries.values(), key=lambda one: not one.table.foreign)
    return render_models(ordered, SUMMARY_CELLS)


def cells_of(recipes: Sequence[str]) -> list[tuple[str, str]]:
    """Return (bits, method) of recipes such as ``w4a4_qdrop``.

    Raises:
        ValueError: If there is none, or one has no method.
    """
    cells = [tuple(recipe.split('_', 1)) for recipe in recipes]
    wrong = [cell for cell in cells if len(cell) < 2]
    if wrong or not cells:
        raise ValueError(
            f'a marker names the recipes {" ".join(recipes)!r}: name at least '
            'one, each as bits_method'
        )
    return [(bits, method) for bits, method in cells]


def entries_below(folder: Path, entries: Mapping[str, Entry]) -> list[Entry]:
    """Return the tables in a folder and below it.

    Raises:
        ValueError: If there are none.
    """
    found = [
        entry
        for entry in entries.values()
        if folder in entry.table.path.parents
    ]
    if not found:
        raise ValueError(f'there is no *{SUFFIX} in {folder} or below it')
    return found


def render_models(
    entries: Iterable[Entry], cells: Sequence[tuple[str, str]]
) -> str:
    """Return one line for each model that has a result in every cell."""
    complete = [
        entry.results
        for entry in entries
        if entry.results is not None
        and all(
            first_measured(entry.results, method=method, bits=bits)
            for bits, method in cells
        )
    ]
    return render_summary(complete, cells) + '\n' if complete else ABSENT


def render_rows(
    table: Table, results: Results, cells: Sequence[tuple[str, str]]
) -> str:
    """Return the lines of some recipes of one model, the float one first.

    Raises:
        ValueError: If one has no result.
    """
    missing = [
        f'{bits}_{method}'
        for bits, method in cells
        if summary_of(results, method=method, bits=bits) is None
    ]
    if missing:
        raise ValueError(f'{table.path}: no result of {", ".join(missing)}')
    rows = [
        row for row in results['rows'] if (row['bits'], row['method']) in cells
    ]
    shown: Results = {**results, 'rows': rows}
    return render_results(shown, columns=table.columns, links=True) + '\n'


def render_table(table: Table, results: Results) -> str:
    """Return the table of a model, and the bits at which methods compare."""
    text = render_results(results, columns=table.columns, links=True) + '\n'
    if table.discriminating is None:
        return text
    return f'{text}\nMethods are compared at {table.discriminating.upper()}.\n'


def as_list(lines: Sequence[str]) -> str:
    """Return lines as a list in Markdown."""
    return ''.join(f'- {line}\n' for line in lines) or ABSENT


def set_lines(entry: EntrySet) -> list[str]:
    """Return a line for each target of a set, none without results."""
    if all(member.results is None for member in entry.members):
        return []
    return [
        describe_set(evaluate_set(target, entry.members))
        for target in entry.targets.targets
    ]


def target_lines(entry: Entry) -> list[str]:
    """Return a line for each target of a table."""
    results = entry.results or {'rows': [], 'float': None}
    return [
        describe(record)
        for record in evaluate_targets(entry.table.targets, results)
    ]
