"""The page of a coverage run."""

from __future__ import annotations

import copy
from typing import Any

from taskptq.bench.coverage.table import page, summary

RECORD: dict[str, Any] = {
    'host': 'mmdet',
    'family': 'solov2',
    'config': 'solov2_r18.py',
    'macs': {
        'total': 1000, 'both': 1000, 'one': 0, 'none': 0, 'share': 1.0,
    },
    'off_gap': 2e-6,
    'sqnr': 31.7,
    'plain_sqnr': 30.2,
    'units': 12,
    'breaks': 1,
    'same_bits': True,
    'file_ratio': 0.25,
    'seconds': 63.0,
    'uncovered': [],
}  # fmt: skip
FAILED = {
    'host': 'mmseg', 'family': 'vpd', 'config': 'vpd.py',
    'failure': 'ImportError: no ldm',
}  # fmt: skip


def partly() -> dict[str, Any]:
    record = copy.deepcopy(RECORD)
    record |= {'family': 'gfl', 'sqnr': None, 'same_bits': False}
    record |= {'off_gap': 0.5, 'off_gap_float64': 3e-12}
    record['reconstruction_failure'] = 'not done after 3 s'
    del record['units']
    record['macs'] |= {'both': 950, 'none': 50, 'share': 0.95}
    record['uncovered'] = [
        {
            'module': 'bbox_head.integral', 'type': 'Integral',
            'function': 'linear', 'share': 0.05, 'reason': 'decodes boxes',
        }
    ]  # fmt: skip
    return record


def test_summary_counts_what_was_measured() -> None:
    assert summary([RECORD, partly(), FAILED]) == (
        '3 families tried, 2 measured: 1 run all multiply-accumulates with '
        'both operands quantized, 1 at least 99% of them; 1 give the same '
        'bits from their file; 1 were reconstructed'
    )


def test_every_family_has_a_row_or_a_reason() -> None:
    text = page([RECORD, FAILED, partly()])
    rows = [line for line in text.splitlines() if line.startswith('| mm')]
    assert [row.split(' | ')[1] for row in rows] == ['gfl', 'solov2']
    assert '100.0 %' in rows[1]
    assert '2e-06 | 31.7 dB | 30.2 dB | yes | 0.25 | 12 (1) |' in rows[1]
    assert '95.0 %' in rows[0]
    assert '| 5e-01 (3e-12) | - | 30.2 dB | **no** |' in rows[0]
    assert '| **failed** |' in rows[0]
    assert '- gfl: not done after 3 s' in text
    assert '- gfl, 5.00%: `bbox_head.integral` (Integral)' in text
    assert '- mmseg vpd (`vpd.py`): ImportError: no ldm' in text


def test_large_gaps_and_units_that_were_left_are_explained() -> None:
    rounding = RECORD | {'off_gap_float64': 0.97, 'rounding_gap': 0.5}
    real = RECORD | {'off_gap_float64': 0.97, 'rounding_gap': 1e-9}
    refused = RECORD | {'float64_failure': 'Error: no kernel'}
    left = RECORD | {'left': {'bbox_head': 'its outputs are not finite'}}
    lines = page([rounding, real, refused, left]).splitlines()
    moved = 'if its weights move by two last places'
    itself = '- mmdet solov2: the float model differs from itself by'
    assert f'{itself} 5e-01 {moved}: so rounding decides' in lines
    assert f'{itself} 1e-09 {moved}: so this is no rounding' in lines
    assert (
        '- mmdet solov2: not taken in double precision: Error: no kernel'
    ) in lines
    assert '- mmdet solov2, `bbox_head`: its outputs are not finite' in lines


def test_sections_without_content_are_left_out() -> None:
    text = page([RECORD])
    assert '## ' not in text
