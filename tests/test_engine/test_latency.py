"""Bits are chosen under a budget of measured time."""

import json

import pytest

from taskptq import quantize
from taskptq.engine import latency
from taskptq.engine.latency import check_runtime, read_table
from taskptq.export.runtime import OnnxFileError
from taskptq.testing import tiny_batches, tiny_model

POINTS = dict(
    weight=dict(num_bits=8), activation=dict(num_bits=8), edge_bits=None
)
# A promise that plain 8 bits do not keep.
STRICT = dict(keep=0.9999, candidates=[8, 'float'])


def run(tmp_path, **mixed):
    _, report = quantize(
        tiny_model('conv'),
        tiny_batches('conv'),
        recipe=dict(qconfig=POINTS, mixed_precision={**STRICT, **mixed}),
        out=tmp_path / 'q.pth',
    )
    return report


def table_of(names, *, integer=1.0, floats=3.0):
    times = {'8x8': integer, 'floatxfloat': floats}
    layers = {name: times for name in names}
    return dict(float_ms=2.0 * len(names), layers=layers)


def test_a_given_table_limits_the_choice(tmp_path):
    names = [name for name, _ in tiny_model('conv').named_modules()]
    names = [name for name in names if name]
    report = run(
        tmp_path,
        budget=dict(latency=1e9),
        latency_table=table_of(names),
    )
    free = report['mixed_precision']
    changed = {change['layer'] for change in free['changes']}
    assert len(changed) > 1
    # Room for one float layer more than the integers take.
    layers = {row['name'] for row in swap_rows(tmp_path)}
    limit = len(layers) + 2.5
    report = run(
        tmp_path / 'tight',
        budget=dict(latency=limit),
        latency_table=table_of(names),
    )
    tight = report['mixed_precision']
    assert tight['costs']['latency'] <= limit
    assert len({change['layer'] for change in tight['changes']}) == 1
    assert not (tmp_path / 'latency_table.json').exists()


def swap_rows(folder):
    content = json.loads((folder / 'swap_report.json').read_text())
    return [row for row in content['modules'] if row['macs']]


def test_without_a_table_layers_are_timed(tmp_path):
    pytest.importorskip('onnxruntime')
    report = run(tmp_path, budget=dict(latency=50.0))
    found = report['mixed_precision']
    table = read_table(tmp_path / 'latency_table.json')
    assert table == found['latency_table']
    assert set(table['layers']) == {row['name'] for row in swap_rows(tmp_path)}
    # Measured times are not part of the settings.
    assert 'latency_table' not in report['recipe']['mixed_precision']
    again = run(
        tmp_path / 'again',
        budget=dict(latency=50.0),
        latency_table=table,
    )
    assert again['mixed_precision']['costs'].keys() == found['costs'].keys()


def test_without_the_runtime_one_sentence_says_what_to_do(monkeypatch):
    def missing(name):
        raise OnnxFileError(f'this needs {name}, which is not installed')

    monkeypatch.setattr(latency, 'runtime_package', missing)
    with pytest.raises(ValueError, match=r'--latency-table.*needs onnx'):
        check_runtime()


@pytest.mark.parametrize(
    ('text', 'message'),
    [('{', 'is not JSON'), ('[]', 'is no latency table')],
)
def test_a_foreign_file_is_no_table(tmp_path, text, message):
    path = tmp_path / 'table.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(path)
    with pytest.raises(FileNotFoundError):
        read_table(tmp_path / 'none.json')
