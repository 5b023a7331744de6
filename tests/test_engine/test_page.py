"""The page on quantized files of the tiny task."""

import json

import pytest
import torch

import taskptq
from taskptq.engine import page as module
from taskptq.engine.page import PageSettings, make_page
from taskptq.export import load
from taskptq.export.checkpoint import QuantizedCheckpointError
from taskptq.export.schema import compute_digest

FEW = PageSettings(num_images=3, layer_images=1, num_tensors=4)
CALIBRATION = dict(num_images=8)


@pytest.fixture
def file(tiny_config, float_checkpoint, tmp_path, qconfig):
    out = tmp_path / 'out' / 'q.pth'
    taskptq.quantize(
        tiny_config,
        float_checkpoint,
        qconfig=qconfig,
        calibration=CALIBRATION,
        out=out,
    )
    return out


def test_everything_is_measured(file, tiny_config, float_checkpoint):
    out = file.parent / 'report.html'
    content = make_page(
        [file],
        out=out,
        config=tiny_config,
        float_checkpoint=float_checkpoint,
        settings=FEW,
    )
    (entry,) = content['files']
    names = [layer['name'] for layer in entry['noise']['layers']]
    assert names == ['stem', 'body.0', 'body.3', 'head']
    assert all(layer['own_db'] > 5 for layer in entry['noise']['layers'])
    assert len(entry['tensors']) == 4
    # The tiny task's predictions are plain numbers.
    assert content['absent'] == {
        'metrics': content['absent']['metrics'],
        'pictures': module.NOTHING_TO_DRAW,
    }
    assert 'taskptq test tiny_config.py q.pth' in content['absent']['metrics']
    assert json.loads(out.with_suffix('.json').read_text())['files']
    assert out.read_text().startswith('<!doctype html>')


def test_without_float_weights(file, tiny_config):
    content = make_page(
        [file],
        out=file.parent / 'r.html',
        config=tiny_config,
        settings=FEW,
    )
    assert content['absent']['noise'] == module.NEEDS_FLOAT
    assert 'noise' not in content['files'][0]
    # Inputs inside the quantized model need no float weights.
    assert len(content['files'][0]['tensors']) == 4


def test_from_the_file_alone(file):
    content = make_page([file], out=file.parent / 'r.html')
    assert content['absent']['pictures'] == module.NEEDS_CONFIG
    assert content['files'][0]['layers']


def test_several_files(file, tiny_config, float_checkpoint, tmp_path, qconfig):
    other = tmp_path / 'other.pth'
    taskptq.quantize(
        tiny_config,
        float_checkpoint,
        recipe='w8a8_minmax',
        calibration=CALIBRATION,
        out=other,
    )
    content = make_page(
        [file, other],
        out=tmp_path / 'r.html',
        config=tiny_config,
        float_checkpoint=float_checkpoint,
        settings=FEW,
    )
    first, second = content['files']
    assert [first['title'], second['title']] == ['q', 'w8a8_minmax']
    low, high = (
        sum(layer['own_db'] for layer in entry['noise']['layers'])
        for entry in (first, second)
    )
    assert high > low


def test_test_images_that_are_not_there(
    file, tiny_config, float_checkpoint, monkeypatch
):
    def absent(config):
        raise FileNotFoundError('data/coco is not there')

    monkeypatch.setattr('taskptq.engine.page_models.evaluation_source', absent)
    content = make_page(
        [file],
        out=file.parent / 'r.html',
        config=tiny_config,
        float_checkpoint=float_checkpoint,
        settings=FEW,
    )
    reason = 'the test images could not be read: data/coco is not there'
    assert content['absent']['noise'] == reason
    assert content['absent']['pictures'] == reason


def damage(path):
    payload = dict(load(path))
    payload['recipe']['seed'] += 1
    torch.save(payload, path)


def test_a_damaged_file_is_refused_before_the_work(file, tiny_config):
    damage(file)
    with pytest.raises(QuantizedCheckpointError, match=r'q\.pth: ') as caught:
        make_page([file], out=file.parent / 'r.html', config=tiny_config)
    assert '\n' not in str(caught.value)
    assert not (file.parent / 'r.html').exists()


def test_a_file_of_another_model_is_refused(file, tiny_config):
    payload = dict(load(file))
    payload['weights']['nowhere.weight'] = payload['weights'].pop(
        'head.weight'
    )
    payload['digest'] = compute_digest(payload)
    torch.save(payload, file)
    with pytest.raises(QuantizedCheckpointError, match=r'q\.pth: '):
        make_page([file], out=file.parent / 'r.html', config=tiny_config)


@pytest.mark.parametrize(
    ('name', 'value'), [('num_images', 0), ('score', 2), ('num_worst', -1)]
)
def test_impossible_settings(name, value):
    with pytest.raises(ValueError, match=name):
        PageSettings(**{name: value})


def test_quantize_writes_it_by_itself(
    tiny_config, float_checkpoint, tmp_path, qconfig
):
    taskptq.quantize(
        tiny_config,
        float_checkpoint,
        qconfig=qconfig,
        calibration=CALIBRATION,
        out=tmp_path / 'new' / 'q.pth',
        report=True,
    )
    content = json.loads((tmp_path / 'new' / 'report.json').read_text())
    assert content['files'][0]['noise']['layers']
    with pytest.raises(ValueError, match='report'):
        taskptq.quantize(
            torch.nn.Linear(2, 2),
            [torch.ones(1, 2)],
            recipe='w8a8',
            report=True,
        )
