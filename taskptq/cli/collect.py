"""Bring the tables in Markdown files and metafiles up to date.

    python tools/collect_results.py            write what has changed
    python tools/collect_results.py --check    exit 1 if something would
    python tools/collect_results.py --targets  print targets and outcomes

README.md and RESULTS.md files show a table between ``<!-- table:<model>_
<dataset> -->`` and ``<!-- /table -->``. Other kinds of marker have the same
form, ``<!-- <kind>:<model>_<dataset> -->`` (on one line) to
``<!-- /<kind> -->``:

- ``rows``: the lines of some recipes, ``<!-- rows:<model>_<dataset> w8a8_mse
  w4a4_qdrop -->``,
- ``models``: one line for each model, ``<!-- models:<folder> w8a8_mse
  w4a4_qdrop -->``, for the tables in a folder and below; models that lack one
  of these results are left out, and so are they from ``table:summary``, which
  has the columns of ``SUMMARY_CELLS``,
- ``targets``: targets and outcomes; also ``targets:<name>`` for those of a
  ``<name>.targets.yml``, which average over tables,
- ``baselines``: mean IoU of trivial masks and of the float model,
- ``softmax``: grid and errors of each softmax, from one row,
- ``peaks``: what bimodal integration decided on each attention, from one row.

``<!-- zoo -->`` is the table of ``configs/zoo.yml``. Markers of DETRs are in
``taskptq/bench/detr_markers.py``; projects register their own
(``taskptq.bench.markers.register``). ``softmax`` and ``peaks`` may
name the row: ``<!-- softmax:<model>_<dataset> <method> <bits> [<seed>] -->``;
otherwise it is the first of ptq4sam-s, agq-s, ptq4sam-l and agq at w4a4, or
else the first that has something to show. A metafile.yml has the results of
its models under ``Models``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from taskptq.bench import markers
from taskptq.bench.entries import (
    FAMILIES,
    Entry,
    EntrySet,
    find_entries,
    find_sets,
)
from taskptq.bench.markdown import groups
from taskptq.bench.page_markers import (
    KINDS,
    render,
    set_lines,
    target_lines,
)
from taskptq.bench.results import Summary, float_summary
from taskptq.bench.zoo.metafile import with_quantized
from taskptq.bench.zoo.page import Measured, measured_files, relative_links
from taskptq.cli.projects import load_projects

PAGES = (
    'README.md',
    'configs/README.md',
    *(
        f'{folder}/*/{name}.md'
        for folder in ('configs', 'projects')
        for name in ('README', 'RESULTS')
    ),
)
MARKED = re.compile(
    rf'(<!-- ({"|".join(KINDS)}):(\S+)((?: [\w.+-]+)*) '
    r'-->\n).*?(<!-- /\2 -->)',
    re.DOTALL,
)


def update_text(
    text: str,
    entries: Mapping[str, Entry],
    sets: Mapping[str, EntrySet],
    *,
    root: Path = Path(),
) -> str:
    """Return a page's text with all its tables new.

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


def update_metafile(
    text: str,
    entries: Mapping[str, Entry],
    *,
    files: Sequence[Measured] = (),
) -> str:
    """Return a metafile's text with the results of its models new.

    Args:
        text: YAML; a model whose ``Name`` is ``<model>_<dataset>`` gets its
            ``Results``.
        entries: All tables.
        files: The zoo's files; each has an entry behind its float model's.
    """
    content = yaml.safe_load(text)
    for model in content.get('Models', []):
        entry = entries.get(model['Name'])
        if entry is not None and entry.results is not None:
            model['Results'] = list(model_results(entry))
    if files:
        content['Models'] = with_quantized(content['Models'], files)
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
    pages = [path for pattern in PAGES for path in sorted(root.glob(pattern))]
    metafiles = [
        path
        for pattern in FAMILIES
        for path in sorted(root.glob(f'{pattern}/metafile.yml'))
    ]
    files = measured_files(root)
    updates = {}
    for path in [*pages, *metafiles]:
        old = path.read_text(encoding='utf-8')
        if path in metafiles:
            new = update_metafile(old, entries, files=files)
        else:
            new = update_text(old, entries, sets, root=root)
            for update in markers.updaters():
                new = update(new, root, FAMILIES, entries)
            new = relative_links(new, page=path.relative_to(root))
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
    load_projects()
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
