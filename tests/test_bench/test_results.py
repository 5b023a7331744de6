"""Files of measured results: whole or absent; mean and spread of seeds."""

import json

import pytest

from taskptq.bench.results import (
    float_rows,
    float_summary,
    load_results,
    put_row,
    save_results,
    summarize,
    summary_of,
)


def row(value, *, method='mse', bits='w4a4', seed=0, **fields):
    return dict(method=method, bits=bits, seed=seed, value=value, **fields)


def test_round_trip_and_absence(tmp_path):
    path = tmp_path / 'new' / 'a.json'
    assert load_results(path) is None
    save_results({'rows': [row(0.5)]}, path)
    assert load_results(path) == {'rows': [row(0.5)]}
    assert [p.name for p in path.parent.iterdir()] == ['a.json']


def test_a_number_that_is_none_keeps_the_old_file(tmp_path):
    path = tmp_path / 'a.json'
    save_results({'rows': []}, path)
    with pytest.raises(ValueError, match='JSON'):
        save_results({'rows': [row(float('nan'))]}, path)
    assert json.loads(path.read_text()) == {'rows': []}


def test_rows_are_replaced_and_kept_in_order():
    results = {'rows': [row(1.0, method='other'), row(2.0, seed=1)]}
    order = ['mse w4a4 0', 'mse w4a4 1']
    put_row(results, row(3.0), order=order)
    put_row(results, row(4.0, seed=1), order=order)
    assert [r['value'] for r in results['rows']] == [3.0, 4.0, 1.0]


def test_seeds_are_summarized():
    rows = [row(0.2, size=10), row(0.4, seed=1), row(9.0, bits='w8a8')]
    found = summary_of({'rows': rows}, method='mse', bits='w4a4')
    assert (found.mean, found.spread) == pytest.approx((0.3, 0.2))
    assert found.num_seeds == 2
    # Of the rows that have it.
    assert found.average('size') == 10
    assert found.average('nothing') is None
    assert summary_of({'rows': rows}, method='gptq', bits='w4a4') is None


def test_metric_that_one_row_lacks_has_no_mean():
    rows = [row(1.0, metrics={'AP75': 0.5}), row(2.0, metrics={})]
    assert summarize(rows[:1], metric='AP75').mean == 0.5
    assert summarize(rows, metric='AP75') is None


@pytest.mark.parametrize(
    ('found', 'count'), [(None, 0), (row(1.0), 1), ([row(1.0), row(3.0)], 2)]
)
def test_float_measurements(found, count):
    results = {'float': found}
    assert len(float_rows(results)) == count
    mean = float_summary(results).mean if count else None
    assert mean == {0: None, 1: 1.0, 2: 2.0}[count]
