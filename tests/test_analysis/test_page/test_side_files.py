"""What lies beside a quantized file."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from taskptq.analysis.page import side_files
from taskptq.analysis.page.side_files import (
    benchmark_beside,
    float_metrics_beside,
    kept_metrics,
    metrics_beside,
    quantization_beside,
    record_metrics,
    sensitivity_beside,
    warnings_of,
)
from taskptq.analysis.sensitivity.record import (
    PointSensitivity,
    SensitivityReport,
)
from taskptq.prepare.report import SwapReport


@pytest.fixture
def file(tmp_path):
    return SimpleNamespace(
        path=tmp_path / 'q.pth',
        payload={'digest': 'abc'},
        rows=lambda: {'stem': None, 'body': None},
    )


def test_metrics_are_recorded_and_read(file, tmp_path):
    record_metrics(tmp_path, {'mAP': 0.3}, digest='abc', file='q.pth')
    record_metrics(tmp_path, {'mAP': 0.1}, digest='other', file='r.pth')
    assert metrics_beside(file) == {'mAP': 0.3}
    record_metrics(tmp_path, {'mAP': 0.4}, digest='abc', file='q.pth')
    assert metrics_beside(file) == {'mAP': 0.4}
    assert len(kept_metrics(tmp_path / 'report.json')['measured']) == 2


def test_metrics_of_classes_are_recorded_and_read(file, tmp_path):
    classes = {'cat': 0.5, 'dog': float('nan')}
    known = dict(digest='abc', file='q.pth', classes=classes)
    record_metrics(tmp_path, {'mAP': 0.3}, **known)
    record_metrics(tmp_path, {'mAP': 0.3}, is_float=True, **known)
    expected = {'cat': 0.5, 'dog': None}
    assert metrics_beside(file, key='classes') == expected
    assert float_metrics_beside([tmp_path], key='classes') == expected


def test_the_speed_of_an_export_of_this_file(file, tmp_path):
    path = tmp_path / 'benchmark.json'
    timings = [
        {'file': 'a/int.onnx', 'digest': 'abc', 'cpu_ms': 2, 'wall_ms': 3},
        {'file': 'a/float.onnx', 'cpu_ms': 4, 'cpu_ratio': 2, 'runs': 20},
    ]
    path.write_text(json.dumps({'runtime': 'x', 'timings': timings}))
    found = benchmark_beside(file)
    assert found['runtime'] == 'x'
    assert (found['threads'], found['batch']) == (1, 1)
    assert [one['file'] for one in found['timings']] == [
        'int.onnx',
        'float.onnx',
    ]
    assert found['timings'][1]['cpu_ratio'] == 2
    assert found['timings'][1]['wall_ms'] is None


@pytest.mark.parametrize(
    'content',
    [{}, {'timings': 3}, {'timings': [{'digest': 'other', 'cpu_ms': 1}]}],
)
def test_other_speeds_do_not_count(file, tmp_path, content):
    (tmp_path / 'benchmark.json').write_text(json.dumps(content))
    assert benchmark_beside(file) is None


def test_only_finite_numbers_are_metrics(file, tmp_path):
    metrics = {'a': float('nan'), 'b': 'text', 'c': 1, 'd': None}
    record_metrics(tmp_path, metrics, digest='abc', file='q.pth')
    assert metrics_beside(file) == {'a': None, 'c': 1.0, 'd': None}
    json.loads((tmp_path / 'report.json').read_text())


def test_the_float_model_counts_by_its_digest(tmp_path):
    record_metrics(
        tmp_path, {'mAP': 0.5}, digest='f1', file='f.pth', is_float=True
    )
    folders = [tmp_path / 'none', tmp_path]
    assert float_metrics_beside(folders) == {'mAP': 0.5}
    assert float_metrics_beside(folders, digest='f1') == {'mAP': 0.5}
    assert float_metrics_beside(folders, digest='f2') == {}


def test_the_report_of_another_quantization_does_not_count(file, tmp_path):
    path = tmp_path / 'quantization_report.json'
    assert quantization_beside(file) == {}
    path.write_text(json.dumps({'digest': 'other', 'seconds': 1}))
    assert quantization_beside(file) == {}
    path.write_text(json.dumps({'digest': 'abc', 'seconds': 1}))
    assert quantization_beside(file)['seconds'] == 1


@pytest.mark.parametrize(
    'text',
    [
        '{',
        '[]',
        '"x"',
        '{"files": 3, "measured": "x", "float": []}',
        '{"measured": [1, {"digest": "abc", "metrics": [1]}]}',
        '[' * 100_000,
    ],
)
def test_damaged_files_hold_nothing(text, file, tmp_path):
    for name in (
        'report.json',
        'quantization_report.json',
        'sensitivity.json',
    ):
        (tmp_path / name).write_text(text)
    assert metrics_beside(file) == {}
    assert quantization_beside(file) == {}
    assert float_metrics_beside([tmp_path]) == {}
    assert sensitivity_beside(file) is None
    record_metrics(tmp_path, {'mAP': 0.3}, digest='abc', file='q.pth')
    assert metrics_beside(file) == {'mAP': 0.3}


def test_a_huge_file_is_not_read(file, tmp_path, monkeypatch):
    record_metrics(tmp_path, {'mAP': 0.3}, digest='abc', file='q.pth')
    monkeypatch.setattr(side_files, 'MAX_BYTES', 10)
    assert metrics_beside(file) == {}


def point(layer):
    return PointSensitivity(
        name=f'{layer}.input_quantizer',
        layer=layer,
        point='activation',
        role='conv input',
        num_bits=8,
        macs=1,
        elements=1,
        sqnr_db=30.0,
        peak_to_std=5.0,
        codes_used=0.5,
        effective_bits=6.0,
        losses={'8': 0.1},
    )


def write_sensitivity(folder: Path, *layers):
    report = SensitivityReport(
        points=[point(layer) for layer in layers],
        estimator='gradient',
        num_images=4,
    )
    text = json.dumps(report.to_dict())
    (folder / 'sensitivity.json').write_text(text)


def test_sensitivities_of_this_model(file, tmp_path):
    write_sensitivity(tmp_path, 'stem', 'body', 'old')
    assert len(sensitivity_beside(file).points) == 3
    write_sensitivity(tmp_path, 'stem', 'x', 'y')
    assert sensitivity_beside(file) is None
    write_sensitivity(tmp_path, 'stem')
    path = tmp_path / 'sensitivity.json'
    path.write_text(path.read_text().replace('30.0', '"much"'))
    assert sensitivity_beside(file) is None


def test_warnings_of_all_steps():
    side = {
        'calibration': {'warnings': ['one color']},
        'warnings': [
            'one color',
            {'text': 'hopeless tensor', 'cure': 'do this'},
        ],
    }
    assert warnings_of(SwapReport(), side) == [
        'one color',
        'hopeless tensor; do this',
    ]
    assert warnings_of(SwapReport(), {'warnings': 'text'}) == []
