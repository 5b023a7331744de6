"""The zoo as a table in Markdown: one line for each float model.

``<!-- zoo --> ... <!-- /zoo -->`` is replaced. Links count from the top level
(``/configs/...``) until the page is known, see ``relative_links``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.entries import Entry
from taskptq.bench.markdown import KIB, to_markdown
from taskptq.bench.results import float_rows
from taskptq.bench.zoo.records import (
    RECORDS,
    is_outdated,
    load_records,
    printed,
)
from taskptq.bench.zoo.source import SOURCE, ZooFile, read_zoo

MARKED = re.compile(r'(<!-- zoo -->\n).*?(<!-- /zoo -->)', re.DOTALL)
LINK = re.compile(r'\]\(/((?:configs|projects)/[^)\s]+)\)')
ABSENT = 'Not measured yet.\n'
NONE = '-'
HEADER = (
    'model',
    'data',
    'metric',
    'float',
    'W8A8',
    'fewer bits',
    'integer ONNX',
    'KiB: float',
    'W8A8',
    'fewer bits',
    'ONNX',
    'ms: float ONNX',
    'integer ONNX',
)
Measured = tuple[ZooFile, Mapping[str, Any]]


def update_zoo_text(
    text: str, root: Path, families: Sequence[str], entries: Mapping[str, Any]
) -> str:
    """Return a page's text with the zoo's table new.

    Args:
        text: The page.
        root: The repository's top level.
        families: Patterns of the folders of tables.
        entries: All tables.
    """
    if MARKED.search(text) is None:
        return text
    table = render_zoo(measured_files(root), entries)
    return MARKED.sub(lambda match: match[1] + table + match[2], text)


def measured_files(root: Path) -> list[Measured]:
    """Return the listed files that were made as they are listed.

    Args:
        root: The repository's top level.
    """
    records = load_records(root / RECORDS)
    return [
        (file, records[file.name])
        for file in read_zoo(root / SOURCE)
        if file.name in records and not is_outdated(file, records[file.name])
    ]


def render_zoo(files: Sequence[Measured], entries: Mapping[str, Entry]) -> str:
    """Return the table, real pretrained models first.

    Args:
        files: Listed files with their records.
        entries: All tables of results.
    """
    models: dict[str, list[Measured]] = {}
    for file, record in files:
        models.setdefault(file.table.name, []).append((file, record))
    lines = [
        _line(entries[name], group)
        for name, group in sorted(
            models.items(), key=lambda item: not entries[item[0]].table.foreign
        )
        if name in entries
    ]
    return to_markdown(HEADER, lines) + '\n' if lines else ABSENT


def _line(entry: Entry, files: Sequence[Measured]) -> list[str]:
    """Return the cells of one float model."""
    table = entry.table
    first = files[0][0]
    eight = [one for one in files if not one[0].low_bit]
    fewer = [one for one in files if one[0].low_bit]
    exported = [record for _, record in files if _has_onnx(record)]
    value, size = float_facts(entry, metric=first.metric)
    return [
        f'[{table.model}](/{table.config})',
        table.dataset,
        first.metric.rpartition('/')[2],
        value,
        *(_values(group) for group in (eight, fewer)),
        _onnx_values(exported),
        size,
        *(_sizes([record for _, record in group]) for group in (eight, fewer)),
        _sizes([record['onnx'] for record in exported]),
        *_latencies(exported),
    ]


def float_facts(entry: Entry, *, metric: str) -> tuple[str, str]:
    """Return the float model's metric and size in KiB.

    Args:
        entry: The table and its results.
        metric: Name of the metric; where the results lack it, their value
            is of the same images.
    """
    rows = float_rows(entry.results) if entry.results else []
    if not rows:
        return NONE, NONE
    row = rows[0]
    value = row['metrics'].get(metric, row['value'])
    size = row.get('file_bytes')
    return printed(value), f'{size / KIB:.0f}' if size else NONE


def _values(files: Sequence[Measured]) -> str:
    """Return metric and recipe of files, linked to what is committed."""
    cells = [
        f'{_linked(printed(record["value"]), record)} `{file.label}`'
        for file, record in files
    ]
    return ', '.join(cells) or NONE


def _onnx_values(records: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for record in records:
        onnx = record['onnx']
        value = onnx.get('value')
        text = 'not evaluated' if value is None else printed(value)
        place = {'committed': onnx['committed'], **onnx['parts'][0]}
        cells.append(_linked(text, place))
    return ', '.join(cells) or NONE


def _linked(text: str, record: Mapping[str, Any]) -> str:
    return f'[{text}](/{record["file"]})' if record['committed'] else text


def _sizes(records: Sequence[Mapping[str, Any]]) -> str:
    """Return sizes in KiB; all parts of an export count."""
    sizes = [
        sum(part['bytes'] for part in record.get('parts', [record]))
        for record in records
    ]
    return ', '.join(f'{size / KIB:.0f}' for size in sizes) or NONE


def _latencies(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the times of float and integer files, with their ratios."""
    found = [
        record['onnx']['latency']
        for record in records
        if 'latency' in record['onnx']
    ]
    return (
        ', '.join(f'{one["float_ms"]:.1f}' for one in found) or NONE,
        ', '.join(
            f'{one["integer_ms"]:.1f} ({one["ratio"]:.2f}x)' for one in found
        )
        or NONE,
    )


def _has_onnx(record: Mapping[str, Any]) -> bool:
    return 'parts' in (record.get('onnx') or {})


def relative_links(text: str, *, page: Path) -> str:
    """Return a page's text with links from the top level made its own.

    >>> relative_links('[a](/configs/yolox/a.pth)', page=Path('configs/R.md'))
    '[a](yolox/a.pth)'

    Args:
        text: The page.
        page: Its place, from the top level.
    """
    return LINK.sub(
        lambda match: (
            f']({Path(os.path.relpath(match[1], page.parent)).as_posix()})'
        ),
        text,
    )
