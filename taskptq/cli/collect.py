"""Bring the tables in README files and metafiles up to date.

    python tools/collect_results.py            write what has changed
    python tools/collect_results.py --check    exit 1 if something would
    python tools/collect_results.py --targets  print targets and outcomes

A README shows a table between ``<!-- table:<model>_<dataset> -->`` and
``<!-- /table -->``, one line for each model between ``<!-- table:summary
-->`` and ``<!-- /table -->``. Other kinds of marker have the same form,
``<!-- <kind>:<model>_<dataset> -->`` (on one line) to ``<!-- /<kind> -->``:

- ``targets``: targets and outcomes; also ``targets:<name>`` for those of a
  ``<name>.targets.yml``, which average over tables,
- ``baselines``: mean IoU of trivial masks beside the float model's,
- ``softmax``: grid and errors of each softmax, from one row,
- ``peaks``: what bimodal integration decided on each attention, from one row.

Kinds of DETRs are in ``taskptq/bench/detr_markers.py``; projects register
their own (``taskptq.bench.markers.register``). ``softmax`` and ``peaks`` may
name the row: ``<!-- softmax:<model>_<dataset> <method> <bits> [<seed>] -->``;
otherwise it is the first of ptq4sam-s, agq-s, ptq4sam-l and agq at w4a4, or
else the first that has something to show. A metafile.yml has the results of
its models under ``Models``.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from taskptq.bench import markers
from taskptq.bench.attention_markers import (
    bimodal_entries,
    pick_row,
    render_baselines,
    render_peaks,
    render_softmax,
)
from taskptq.bench.markdown import (
    groups,
    render_benchmarks,
    render_results,
    render_summary,
)
from taskptq.bench.results import Results, Summary, float_summary, load_results
from taskptq.bench.table import SUFFIX, Table, read_table
from taskptq.bench.target_sets import SUFFIX as SET_SUFFIX
from taskptq.bench.target_sets import (
    Member,
    TargetSet,
    describe_set,
    evaluate_set,
    read_target_set,
)
from taskptq.bench.targets import describe, evaluate_targets

FAMILIES = ('configs/*', 'projects/*/configs', 'projects/*/configs/*')
READMES = ('README.md', 'configs/*/README.md', 'projects/*/README.md')
MARKED = re.compile(
    r'(<!-- (table|targets|baselines|softmax|peaks):(\S+)((?: [\w.+-]+)*) '
    r'-->\n).*?(<!-- /\2 -->)',
    re.DOTALL,
)
SUMMARY = 'summary'
BENCHMARKS = 'benchmarks'
BENCHMARK_RESULTS = 'tools/benchmarks/results/*.json'
SUMMARY_CELLS = (
    ('w8a8', 'mse'),
    ('w4a4', 'mse'),
    ('w4a4', 'qdrop'),
    ('w2a4', 'mse'),
    ('w2a4', 'qdrop'),
    ('w2a2', 'mse'),
    ('w2a2', 'qdrop'),
)
ABSENT = 'Not measured yet.\n'
# Kinds of marker that show one row: what it must have -> how it is shown.
ROW_KINDS = {
    'softmax': (lambda row: row.get('softmax'), render_softmax),
    'peaks': (bimodal_entries, render_peaks),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A table and its results, None if nothing is measured yet."""

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
        ValueError: If two tables have one name, or see ``read_table``.
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


def render(
    kind: str,
    name: str,
    entries: Mapping[str, Entry],
    *,
    row: Sequence[str] = (),
    sets: Mapping[str, EntrySet] | None = None,
    root: Path = Path(),
) -> str:
    """Return what belongs between two markers, ending in a newline.

    Args:
        kind: ``table``, ``targets``, ``baselines``, ``softmax`` or
            ``peaks``.
        name: ``<model>_<dataset>`` or ``summary``.
        entries: All tables.
        row: Method, bits and perhaps seed, for the last two kinds.
        sets: All sets of targets.
        root: The repository's top level.

    Raises:
        ValueError: If there is no such table, or a row is named where none
            can be, or in the wrong form.
    """
    if row and kind not in ROW_KINDS:
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
    entry = entries[name]
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
    return render_table(entry.table, entry.results)


def render_all(name: str, entries: Mapping[str, Entry], *, root: Path) -> str:
    """Return the table over all models, or that of the benchmarks."""
    if name == BENCHMARKS:
        files = sorted(root.glob(BENCHMARK_RESULTS))
        records = [json.loads(file.read_text()) for file in files]
        return render_benchmarks(records) + '\n' if records else ABSENT
    measured = [
        entry.results
        for entry in entries.values()
        if entry.results is not None
    ]
    if not measured:
        return ABSENT
    return render_summary(measured, SUMMARY_CELLS) + '\n'


def render_table(table: Table, results: Results) -> str:
    """Return the table of a model, and at which bits methods compare."""
    text = render_results(results, columns=table.columns) + '\n'
    if table.discriminating is None:
        return text
    return f'{text}\nMethods are compared at {table.discriminating.upper()}.\n'


def as_list(lines: Sequence[str]) -> str:
    """Return lines as a list in Markdown."""
    return ''.join(f'- {line}\n' for line in lines) or ABSENT


def set_lines(entry: EntrySet) -> list[str]:
    """Return a line for each target of a set; none if nothing is there."""
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


def update_text(
    text: str,
    entries: Mapping[str, Entry],
    sets: Mapping[str, EntrySet],
    *,
    root: Path = Path(),
) -> str:
    """Return a README's text with all its tables new.

    Raises:
        ValueError: If a marker names no table.
    """
    return MARKED.sub(
        lambda m: (
            m[1]
            + render(
                m[2], m[3], entries, row=m[4].split(), sets=sets, root=root
            )
            + m[5]
        ),
        text,
    )


def update_metafile(text: str, entries: Mapping[str, Entry]) -> str:
    """Return a metafile's text with the results of its models new.

    Args:
        text: YAML; a model whose ``Name`` is ``<model>_<dataset>`` gets its
            ``Results``.
        entries: All tables.
    """
    content = yaml.safe_load(text)
    for model in content.get('Models', []):
        entry = entries.get(model['Name'])
        if entry is not None and entry.results is not None:
            model['Results'] = list(model_results(entry))
    return yaml.safe_dump(content, sort_keys=False, width=79)


def model_results(entry: Entry) -> Iterator[dict[str, Any]]:
    """Walk over a model's entries of metafile.yml, float first."""
    results = entry.results
    reference = float_summary(results) if results else None
    if results is None or reference is None:
        return
    facts = entry.table.metafile

    def as_entry(summary: Summary, **quantization: Any) -> dict[str, Any]:
        value = round(summary.mean * facts.get('factor', 1), 2)
        return {
            'Task': facts['task'],
            'Dataset': results['dataset'],
            **quantization,
            'Metrics': {facts['metric']: value},
        }

    yield as_entry(reference)
    for bits, method, summary in groups(results):
        yield as_entry(summary, Quantization=f'{method} {bits}')


def find_updates(
    root: Path, entries: Mapping[str, Entry], sets: Mapping[str, EntrySet]
) -> dict[Path, str]:
    """Return the new text of every file that is out of date.

    Args:
        root: The repository's top level.
        entries: All tables.
        sets: All sets of targets.

    Raises:
        ValueError: If a marker names no table.
    """
    readmes = [
        path for pattern in READMES for path in sorted(root.glob(pattern))
    ]
    metafiles = [
        path
        for pattern in FAMILIES
        for path in sorted(root.glob(f'{pattern}/metafile.yml'))
    ]
    updates = {}
    for path in [*readmes, *metafiles]:
        old = path.read_text(encoding='utf-8')
        if path in metafiles:
            new = update_metafile(old, entries)
        else:
            new = update_text(old, entries, sets, root=root)
            for update in markers.updaters():
                new = update(new, root, FAMILIES, entries)
        if new != old:
            updates[path] = new
    return updates


def main(argv: list[str] | None = None) -> None:
    """Update, check, or print the targets.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If --check finds a file out of date, or a marker or a
            table is wrong.
    """
    parser = argparse.ArgumentParser(description='Update tables of results')
    parser.add_argument(
        '--check',
        action='store_true',
        help='change nothing, exit 1 if a file is outdated',
    )
    parser.add_argument(
        '--targets',
        action='store_true',
        help='print the targets and whether they are met',
    )
    parser.add_argument(
        '--root', type=Path, default=Path(), help='top level of the repository'
    )
    args = parser.parse_args(argv)
    try:
        entries = find_entries(args.root)
        sets = find_sets(args.root, entries)
        if args.targets:
            for name, entry in entries.items():
                print('\n'.join([name, *target_lines(entry)]))
            for name, several in sets.items():
                print('\n'.join([name, *set_lines(several)]))
            return
        updates = find_updates(args.root, entries, sets)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    names = ', '.join(str(path.relative_to(args.root)) for path in updates)
    if args.check and updates:
        raise SystemExit(
            f'{names}: out of date, run python tools/collect_results.py'
        )
    for path, text in updates.items():
        path.write_text(text, encoding='utf-8')
    print(f'Updated {names}' if updates else 'Everything is up to date')


if __name__ == '__main__':
    main()
