"""Relative losses of two models at the same bits."""

from pathlib import Path

import pytest

from taskptq.bench.loss_ratio import (
    Loss,
    metric_of,
    relative_losses,
    render_losses,
    verdict,
)
from taskptq.bench.table import Table


def results(reference, **rows):
    """Results of a model; keywords are ``method_bits`` -> values."""
    found = []
    for name, values in rows.items():
        method, bits = name.split('_')
        found += [
            dict(method=method, bits=bits, seed=i, value=value)
            for i, value in enumerate(values)
        ]
    return {'float': {'value': reference}, 'rows': found}


def test_losses_of_rows_that_both_have():
    one = results(0.5, mse_w4a4=[0.45], mse_w8a8=[0.5], gptq_w4a4=[0.4])
    other = results(0.4, mse_w4a4=[0.32, 0.28], mse_w8a8=[0.39])
    found = relative_losses(one, other, metric='value')
    assert [(x.bits, x.method) for x in found] == [
        ('w8a8', 'mse'),
        ('w4a4', 'mse'),
    ]
    assert found[1].one == pytest.approx(0.1)
    assert found[1].other == pytest.approx(0.25)
    assert found[1].num_seeds == 1
    assert found[1].ratio == pytest.approx(0.4)
    # A loss of 2.5 % discriminates nothing.
    assert found[0].ratio is None
    assert relative_losses(one, {'rows': []}, metric='value') == []


@pytest.mark.parametrize(
    ('one', 'other', 'said'),
    [
        (0.125, 0.25, 'yes'),
        (0.08, 0.1, 'no'),
        (0.01, 0.09, ''),
        (-0.01, 0.2, 'yes'),
    ],
)
def test_verdict(one, other, said):
    loss = Loss(
        bits='w4a4',
        method='mse',
        scope='head',
        one=one,
        other=other,
        num_seeds=2,
    )
    assert verdict(loss) == said
    line = render_losses([loss], names=['a', 'b']).splitlines()[2]
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    assert cells[:3] == ['w4a4', 'mse', 'head']
    assert cells[-2:] == [said, '2']


def test_column_that_a_table_lacks_is_named():
    table = Table(
        path=Path('a.table.yml'),
        model='m',
        dataset='d',
        config='c',
        checkpoint='p',
        metric='bbox',
        groups=[],
        columns={'AP at 75': 'ap75'},
    )
    assert metric_of(table, 'AP_at_75') == 'ap75'
    with pytest.raises(ValueError, match=r"a\.table\.yml.*'AP'.*AP_at_75"):
        metric_of(table, 'AP')
