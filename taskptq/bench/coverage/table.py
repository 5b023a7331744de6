"""The records of a coverage run as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskptq.prepare.products_report import count_text, percent

FULL = 0.99
HEAD = (
    '| host | family | config | MACs | both | one | none | off | SQNR '
    '| same bits | file | seconds |'
)
RULE = f'|{"---|" * 12}'


def summary(records: Iterable[Mapping[str, Any]]) -> str:
    """Return one sentence about all records.

    Args:
        records: Of a coverage run.
    """
    records = list(records)
    measured = [r for r in records if 'macs' in r]
    complete = sum(r['macs']['both'] == r['macs']['total'] for r in measured)
    high = sum(r['macs']['share'] >= FULL for r in measured)
    return (
        f'{len(records)} families tried, {len(measured)} measured: {complete} '
        f'run all multiply-accumulates with both operands quantized, {high} '
        f'at least {FULL:.0%} of them'
    )


def page(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the whole page in Markdown.

    Args:
        records: Of a coverage run.
    """
    records = sorted(records, key=lambda r: (r['host'], r['family']))
    measured = [r for r in records if 'macs' in r]
    failed = [r for r in records if 'macs' not in r]
    lines = [
        "# Coverage of the hosts' own configs",
        '',
        'Written by `taskptq bench coverage`. One config of each family, '
        'random weights, one drawn image, W8A8.',
        '',
        f'{summary(records)}.',
        '',
        '- **both, one, none**: share of multiply-accumulates with so many '
        'operands quantized.',
        '- **off**: largest difference of the outputs with all quantizers '
        'off, relative to the largest output.',
        '- **SQNR**: signal to quantization noise of the outputs; of '
        'predictions, which noise reorders, where a model has no raw '
        'outputs.',
        '- **same bits**: whether the file gives the same outputs.',
        '- **file**: its size relative to float32.',
        '',
        HEAD,
        RULE,
        *map(_row, measured),
    ]
    lines += _reasons(measured) + _failures(failed)
    return '\n'.join(lines) + '\n'


def _row(record: Mapping[str, Any]) -> str:
    macs = record['macs']
    shares = [
        percent(macs[key], macs['total']) for key in ('both', 'one', 'none')
    ]
    noise = record.get('sqnr')
    cells = [
        record['host'],
        record['family'],
        f'`{record["config"]}`',
        count_text(macs['total']),
        *shares,
        f'{record["off_gap"]:.0e}',
        '-' if noise is None else f'{noise:.1f} dB',
        'yes' if record['same_bits'] else '**no**',
        f'{record["file_ratio"]:.2f}',
        f'{record["seconds"]:.0f}',
    ]
    return f'| {" | ".join(cells)} |'


def _reasons(records: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [
        f'- {record["family"]}, {product["share"]:.2%}: `{product["module"]}` '
        f'({product["type"]}), `{product["function"]}`: {product["reason"]}'
        for record in records
        for product in record['uncovered']
    ]
    if not lines:
        return []
    return ['', '## What runs on float operands', '', *lines]


def _failures(records: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [
        f'- {record["host"]} {record["family"]} (`{record["config"]}`): '
        f'{record["failure"]}'
        for record in records
    ]
    return ['', '## Not measured', '', *lines] if lines else []
