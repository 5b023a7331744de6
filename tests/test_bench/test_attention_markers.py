"""Softmax grids, peaks of keys and trivial masks as Markdown."""

import pytest

from taskptq.bench.attention_markers import (
    bimodal_entries,
    common_prefix,
    pick_row,
    render_baselines,
    render_peaks,
    render_softmax,
)


def row(method, *, bits='w4a4', seed=0, **fields):
    return dict(method=method, bits=bits, seed=seed, **fields)


ROWS = {'rows': [row('mse'), row('agq', seed=1), row('ptq4sam-l')]}


@pytest.mark.parametrize(
    ('wanted', 'method'),
    [
        ([], 'ptq4sam-l'),
        (['agq', 'w4a4'], 'agq'),
        (['agq', 'w4a4', '1'], 'agq'),
        (['agq', 'w4a4', '0'], None),
    ],
)
def test_row_to_show(wanted, method):
    found = pick_row(ROWS, wanted, has=lambda row: True)
    assert (found and found['method']) == method


def test_only_rows_with_the_data_count():
    found = pick_row(ROWS, [], has=lambda row: row['method'] == 'mse')
    assert found['method'] == 'mse'
    assert pick_row(ROWS, [], has=lambda row: False) is None
    with pytest.raises(ValueError, match='<method>'):
        pick_row(ROWS, ['agq'], has=lambda row: True)


@pytest.mark.parametrize(
    ('names', 'prefix'),
    [
        (['a.b.x', 'a.b.y'], 'a.b.'),
        (['a.b.x', 'a.c.x'], 'a.'),
        (['x', 'a.x'], ''),
        (['a.b.x'], 'a.b.'),
    ],
)
def test_common_prefix(names, prefix):
    assert common_prefix(names) == prefix


def test_grids_and_how_many_improved():
    def grid(tau, *errors):
        keys = ('error', 'error_tau1', 'error_uniform')
        return dict(zip(keys, errors, strict=True), tau=tau)

    softmax = {
        'm.one.softmax_quantizer': grid([2], 0.1, 0.2, 0.3),
        'm.two.softmax_quantizer': grid([0, 4, 4], 0.2, 0.2, 0.3),
        'm.three.softmax_quantizer': grid([1], 0.4, 0.3, 0.5),
    }
    text = render_softmax(row('agq', softmax=softmax))
    assert '`one`' in text
    assert 'uniform (1 head), 4 (2 heads)' in text
    assert 'on 1 of 3 softmaxes' in text
    assert 'on 2.' in text


def test_decision_of_each_attention():
    details = dict(
        num_negative=3,
        num_positive=5,
        peaks={'positions': [-1.0, 1.0]},
        range_before=[-2.0, 2.0],
        range_after=[0.0, 2.0],
    )
    entries = [
        dict(name='m.a', status='applied', reason='', details=details),
        dict(name='m.b', status='skipped', reason='one peak', details={}),
    ]
    found = row(
        'big',
        rewrites=[
            dict(rewrite='KeyShift', entries=[dict(name='other')]),
            dict(rewrite='BimodalIntegration', entries=entries),
        ],
    )
    assert bimodal_entries(found) == entries
    text = render_peaks(found)
    assert '3 of 8 channels flipped' in text
    assert '-2.00 to 2.00' in text
    assert 'skipped: one peak' in text
    assert bimodal_entries(row('mse')) == []


def test_trivial_masks():
    metrics = {
        'box/miou': 0.9,
        'box/miou_box': 0.5,
        'box/miou_ellipse': 0.6,
        'box/matched_miou': 0.8,
        'box/matched_miou_box': 0.4,
        'box/matched_miou_ellipse': 0.5,
    }
    results = dict(model='m', dataset='d', float=dict(metrics=metrics))
    first, second = render_baselines(results).splitlines()
    assert 'float model 0.9000' in first
    assert 'objects found' in second
    assert 'filled box 0.4000' in second
    with pytest.raises(ValueError, match='m_d'):
        render_baselines(dict(results, float=dict(metrics={'AP': 1.0})))
