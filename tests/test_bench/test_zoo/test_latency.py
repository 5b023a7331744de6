"""Times of exports and of their float models."""

import json
from pathlib import Path

import pytest

from taskptq.bench.zoo import latency
from taskptq.bench.zoo.latency import (
    has_export,
    listed_export,
    measure_latency,
    median_times,
)
from taskptq.bench.zoo.write import write_file
from taskptq.testing.models import tiny_batches, tiny_model

pytest.importorskip('onnxruntime', reason='needs taskptq[onnx]')
SIZE = [32, 32]


@pytest.fixture
def written(write_zoo, pretend, tmp_path):
    """A file with its record, whose exports are networks that run."""
    from taskptq.export.onnx import export_onnx

    def export(words):
        pretend.calls.append(words)
        path = Path(words[words.index('--out') + 1])
        export_onnx(
            tiny_model('conv'),
            (tiny_batches('conv')[0],),
            path,
            input_names=['x'],
            output_names=['y'],
            dynamic_axes={'x': {0: 'batch'}, 'y': {0: 'batch'}},
            metadata=metadata(),
        )

    pretend.export = export
    entry = {'recipe': 'w8a8_mse', 'onnx': True}
    (file,) = write_zoo(files=[entry])
    folder = tmp_path / 'work'
    record = write_file(
        file, None, tools=pretend.tools(), folder=folder, facts={}
    )
    pretend.calls.clear()
    return file, record, folder


def metadata():
    known = {
        'part': '',
        'parts': [''],
        'export': 'a',
        'model': 'Net',
        'target': 'any',
    }
    more = {'digest': 'd', 'input_size': SIZE, 'recipe': 'w8a8_mse'}
    return {
        f'taskptq.{key}': json.dumps(value)
        for key, value in {**known, **more}.items()
    }


def test_both_files_run_at_the_size_of_the_export(written, pretend):
    file, record, folder = written
    found = measure_latency(
        file,
        record,
        tools=pretend.tools(),
        folder=folder,
        facts={'commit': 'abc'},
    )
    (words,) = pretend.calls
    assert words[2] == '--float'
    assert words[-2:] == [str(side) for side in SIZE]
    assert (found['size'], found['commit']) == (SIZE, 'abc')
    assert found['ratio'] == pytest.approx(
        found['float_ms'] / found['integer_ms'], abs=1e-3
    )
    assert file.name in found['command']


def test_an_export_that_differs_is_not_timed(written, pretend):
    file, record, folder = written
    record['onnx']['parts'][0]['sha256'] = '0' * 64
    with pytest.raises(ValueError, match='listed is 0000'):
        listed_export(file, record, tools=pretend.tools(), folder=folder)


@pytest.mark.parametrize(
    ('record', 'has'),
    [
        (None, False),
        ({}, False),
        ({'onnx': {'refused': 'no form'}}, False),
        ({'onnx': {'parts': []}}, True),
    ],
)
def test_refused_exports_have_no_time(record, has):
    assert has_export(record) == has


def test_files_run_in_turn(monkeypatch, written):
    _, record, _ = written
    path = Path(record['onnx']['parts'][0]['file'])
    monkeypatch.setattr(latency, 'RUNS', 2)
    (found,) = median_times([path], size=SIZE)
    assert found > 0
