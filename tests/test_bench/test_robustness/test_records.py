import json

import pytest

from taskptq.bench.robustness.evaluation import Outcome
from taskptq.bench.robustness.plan import parse_row
from taskptq.bench.robustness.records import Records
from taskptq.bench.robustness.subjects import Subject

HEADER = {
    'model': 'net',
    'config': 'net.py',
    'images': 5,
    'seed': 0,
    'float_sha256': 'f',
}
ROW = parse_row('fog=3')


def subject(name, digest):
    return Subject(
        name=name, kind='quantized', file=name, sha256=digest, model=None
    )


def test_only_missing_models_are_measured_again(tmp_path):
    records = Records(tmp_path, HEADER)
    one, two = subject('one', 'a'), subject('two', 'b')
    assert records.missing(ROW, [one, two]) == [one, two]
    records.add(
        ROW,
        {'one': Outcome(metrics={'mAP': 0.5})},
        subjects=[one],
        seconds=1.0,
        processor_seconds=0.5,
    )
    again = Records(tmp_path, HEADER)
    assert again.missing(ROW, [one, two]) == [two]
    changed = subject('one', 'other')
    assert again.missing(ROW, [changed]) == [changed]
    again.add(
        ROW,
        {'two': Outcome(reason='none')},
        subjects=[two],
        seconds=2.0,
        processor_seconds=0.25,
    )
    (row,) = again.rows()
    assert (row['seconds'], row['processor_seconds']) == (3.0, 0.75)
    assert row['results'] == {
        'one': {'sha256': 'a', 'metrics': {'mAP': 0.5}},
        'two': {'sha256': 'b', 'reason': 'none'},
    }


def test_rows_are_sorted_and_files_named_at_the_end(tmp_path):
    records = Records(tmp_path, HEADER)
    one = subject('one', 'a')
    names = ['fog=3', 'crop=1', 'ceil_mode']
    for name in names:
        records.add(
            parse_row(name),
            {'one': Outcome(metrics={'mAP': 0.5})},
            subjects=[one],
            seconds=0.5,
        )
    content = records.finish(names[::-1], [one], run={'commit': 'c'})
    assert [row['noise'] for row in content['rows']] == names[::-1]
    assert content['subjects'][0]['sha256'] == 'a'
    saved = json.loads((tmp_path / 'robustness.json').read_text())
    assert saved == content
    assert saved['runs'] == [{'commit': 'c'}]
    again = records.finish(names, [one], run={'commit': 'd'})
    assert [run['commit'] for run in again['runs']] == ['c', 'd']


@pytest.mark.parametrize('key', ['images', 'seed', 'float_sha256', 'config'])
def test_other_settings_need_another_folder(tmp_path, key):
    Records(tmp_path, HEADER).finish([], [], run={})
    with pytest.raises(ValueError, match=f'has {key} .* another --out'):
        Records(tmp_path, {**HEADER, key: 'other'})
