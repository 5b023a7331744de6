"""The records of a coverage run as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskptq.prepare.products_report import count_text, percent

FULL = 0.99
HEAD = (
    '| host | family | config | MACs | both | one | none | off | SQNR '
    '| plain | same bits | file | units | seconds |'
)
RULE = f'|{"---|" * 14}'


def summary(records: Iterable[Mapping[str, Any]]) -> str:
    """Return one sentence about all records.

    Args:
        records: Of a coverage run.
    """
    records = list(records)
    measured = [r for r in records if 'macs' in r]
    complete = sum(r['macs']['both'] == r['macs']['total'] for r in measured)
    high = sum(r['macs']['share'] >= FULL for r in measured)
    same = sum(r['same_bits'] for r in measured)
    rebuilt = sum('units' in r for r in measured)
    return (
        f'{len(records)} families tried, {len(measured)} measured: {complete} '
        f'run all multiply-accumulates with both operands quantized, {high} '
        f'at least {FULL:.0%} of them; {same} give the same bits from '
        f'their file; {rebuilt} were reconstructed'
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
        'Written by `taskptq bench coverage`. The config with the smallest '
        'backbone of each family, random weights, few objects and queries, '
        'one drawn image of the smallest size that the model takes (64 x 96 '
        'or larger), W8A8.',
        '',
        f'{summary(records)}. {_measured_at(records)}',
        '',
        '- **both, one, none**: share of multiply-accumulates with so many '
        'operands quantized.',
        '- **off**: largest difference of the outputs with all quantizers '
        'off, relative to the largest output. Random weights amplify '
        'rounding, and thresholds turn it into other boxes: in brackets, '
        'the same in double precision, where it was large; what is large '
        'there too is explained below.',
        '- **SQNR**: signal to quantization noise of the outputs; of '
        'predictions, which noise reorders, where a model has no raw '
        'outputs. **plain**: the same of an independent quantizer of a few '
        'lines, ranges by min and max of the image itself.',
        '- **same bits**: whether the file gives the same outputs.',
        '- **file**: its size relative to float32.',
        '- **units**: of a reconstruction of two steps each, in brackets '
        'those whose inputs needed a pass of the whole model; - where it '
        'was not tried.',
        '- **seconds**: of one core, all of the above.',
        '',
        HEAD,
        RULE,
        *map(_row, measured),
    ]
    lines += _gaps(measured) + _reasons(measured)
    lines += _unreconstructed(measured) + _left(measured)
    lines += _failures(failed)
    return '\n'.join(lines) + '\n'


def _measured_at(records: Iterable[Mapping[str, Any]]) -> str:
    """Return a sentence that names the commits of the runs."""
    commits = sorted({r.get('commit', 'unknown')[:12] for r in records})
    return f'Measured at commit {", ".join(f"`{c}`" for c in commits)}.'


def _row(record: Mapping[str, Any]) -> str:
    macs = record['macs']
    shares = [
        percent(macs[key], macs['total']) for key in ('both', 'one', 'none')
    ]
    cells = [
        record['host'],
        record['family'],
        f'`{record["config"]}`',
        count_text(macs['total']),
        *shares,
        _off(record),
        *(_decibels(record.get(key)) for key in ('sqnr', 'plain_sqnr')),
        'yes' if record['same_bits'] else '**no**',
        f'{record["file_ratio"]:.2f}',
        _units(record),
        f'{record["seconds"]:.0f}',
    ]
    return f'| {" | ".join(cells)} |'


def _off(record: Mapping[str, Any]) -> str:
    text = f'{record["off_gap"]:.0e}'
    double = record.get('off_gap_float64')
    return text if double is None else f'{text} ({double:.0e})'


def _decibels(noise: float | None) -> str:
    return '-' if noise is None else f'{noise:.1f} dB'


def _units(record: Mapping[str, Any]) -> str:
    if 'reconstruction_failure' in record:
        return '**failed**'
    if 'units' not in record:
        return '-'
    return f'{record["units"]} ({record["breaks"]})'


def _gaps(records: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [
        f'- {record["host"]} {record["family"]}: {text}'
        for record in records
        if (text := _gap(record))
    ]
    return ['', '## Gaps with quantizers off', '', *lines] if lines else []


def _gap(record: Mapping[str, Any]) -> str:
    """Return what explains a large gap, '' if there is none."""
    if 'float64_failure' in record:
        return f'not taken in double precision: {record["float64_failure"]}'
    if 'rounding_gap' not in record:
        return ''
    own = record['rounding_gap']
    text = (
        'the float model differs from itself by '
        f'{own:.0e} if its weights move by two last places'
    )
    small = own < record['off_gap_float64'] / 10
    why = 'so this is no rounding' if small else 'so rounding decides'
    return f'{text}: {why}'


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


def _unreconstructed(records: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [
        f'- {record["family"]}: {record["reconstruction_failure"]}'
        for record in records
        if 'reconstruction_failure' in record
    ]
    return ['', '## Not reconstructed', '', *lines] if lines else []


def _left(records: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [
        f'- {record["host"]} {record["family"]}, `{unit}`: {fault}'
        for record in records
        for unit, fault in record.get('left', {}).items()
    ]
    head = ['', '## Units that reconstruction left as they were', '']
    return [*head, *lines] if lines else []


def _failures(records: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [
        f'- {record["host"]} {record["family"]} (`{record["config"]}`): '
        f'{record["failure"]}'
        for record in records
    ]
    return ['', '## Not measured', '', *lines] if lines else []
