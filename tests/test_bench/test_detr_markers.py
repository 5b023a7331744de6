"""Reports of DETRs as lines of Markdown."""

import pytest

from taskptq.bench.detr_markers import (
    cells,
    columns_of,
    conditions,
    decimals,
    difference,
    query_lines,
    render_alignment,
    share,
    span,
)


@pytest.mark.parametrize(
    ('value', 'text'),
    [(None, ''), (0.12345, '0.123'), (-0.0001, '0.000'), (-0.5, '-0.500')],
)
def test_decimals(value, text):
    assert decimals(value) == text


def test_shares_and_spans():
    assert share(0.25, 0.5) == '50.0%'
    assert share(0.25, 0) == ''
    assert span([0.1, 0.2, 0.3]) == '0.100 to 0.200'


def test_difference_needs_both():
    one, other = {'metrics': {'AP': 0.5}}, {'metrics': {'AP': 0.3}}
    assert difference(one, other, 'AP') == pytest.approx(0.2)
    assert difference(one, {'metrics': {}}, 'AP') is None


def test_columns_are_at_least_the_metric():
    report = dict(columns={}, metric='coco/AP')
    assert columns_of(report) == {'coco/AP': 'coco/AP'}
    assert columns_of(dict(report, columns={'AP': 'a'})) == {'AP': 'a'}
    assert cells({'metrics': {'a': 1.0}}, {'A': 'a', 'B': 'b'}) == [
        '1.000',
        '',
    ]


def test_missing_parts_are_told():
    report = dict(bits='w4a4', method='mse', absent=['neck', 'encoder FFN'])
    text = conditions(report)
    assert 'W4A4' in text
    assert 'no neck, no encoder FFN' in text
    assert 'The model has' not in conditions(dict(report, absent=[]))


def test_queries_of_float_have_no_codes():
    facts = dict(
        mean=0.0,
        std=1.0,
        head_means=[0, 1],
        head_stds=[1, 2],
        entropy=None,
        num_bits=None,
        num_codes=None,
    )
    quantized = dict(facts, num_bits=4, entropy=3.25, num_codes=11)
    one, two = query_lines('layer 0', {'float': facts, 'w4': quantized})
    assert one[:2] == ['layer 0', 'float']
    assert one[-2:] == ['', '']
    assert two[-2:] == ['3.25 of 4', '11']


def test_alignment_compares_with_float():
    report = {
        'columns': {'AP': 'AP'},
        'metric': 'AP',
        'float': dict(value=0.5, metrics={'AP': 0.5}),
        'aligned': dict(value=0.4, metrics={'AP': 0.4}),
    }
    lines = render_alignment(report).splitlines()
    assert '100.0%' in lines[2]
    assert '80.0%' in lines[3]
