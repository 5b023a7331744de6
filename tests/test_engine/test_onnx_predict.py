import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')
pytest.importorskip('onnxruntime')

import cv2
from mmengine.config import Config, ConfigDict
from runtimes import find_runtime
from tiny_detectors import zoo_settings

from taskptq import apis
from taskptq.cli import benchmark
from taskptq.cli import predict as command
from taskptq.engine.onnx_predict import (
    Prediction,
    of_sample,
    predict_file,
    predict_with_host,
)

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackDetInputs')
PIPELINE = [
    LOAD,
    dict(type='Resize', scale=(96, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    PACK,
]


def settings(name):
    test = dict(
        score_thr=0.0,
        nms_pre=60,
        max_per_img=20,
        min_bbox_size=0,
        nms=dict(type='nms', iou_threshold=0.5),
    )
    changes = {
        'data_preprocessor': dict(
            type='DetDataPreprocessor',
            mean=[10.0, 20, 30],
            std=[50.0, 60, 70],
            bgr_to_rgb=True,
            pad_size_divisor=32,
        )
    }
    if name == 'retinanet':
        changes['test_cfg'] = test
    return Config(
        ConfigDict(
            default_scope='mmdet',
            model=zoo_settings(name, {'': changes}),
            test_dataloader=dict(dataset=dict(pipeline=PIPELINE)),
        )
    )


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Config and exported file of tiny detectors, by name."""
    folder = tmp_path_factory.mktemp('exported')
    made = {}

    def export(name):
        if name not in made:
            config, out = settings(name), folder / f'{name}.onnx'
            torch.manual_seed(0)
            model = apis.build_model(config)
            checkpoint = folder / f'{name}.pth'
            torch.save({'state_dict': model.state_dict()}, checkpoint)
            apis.export_onnx(
                config,
                checkpoint,
                out=out,
                float_model=True,
                num_images=0,
                size=(64, 96),
            )
            made[name] = config, out
        return made[name]

    return export


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)
    path = tmp_path / 'image.png'
    path.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())
    return path


def test_a_file_predicts_what_the_host_predicts(exported, image):
    config, out = exported('retinanet')
    own = predict_file(out, image, threads=1)
    host = predict_with_host(out, image, config=config, threads=1)
    assert len(own.boxes) == 20
    np.testing.assert_allclose(own.scores, host.scores, atol=1e-5)
    np.testing.assert_allclose(own.boxes, host.boxes, atol=1e-2)
    assert own.labels.tolist() == host.labels.tolist()


def test_openvino_predicts_the_same(exported, image):
    find_runtime('openvino')
    config, out = exported('retinanet')
    known = predict_file(out, image, threads=1)
    own = predict_file(out, image, runtime='openvino', threads=1)
    host = predict_with_host(
        out, image, config=config, runtime='openvino', threads=1
    )
    for found in (own, host):
        np.testing.assert_allclose(found.scores, known.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes, known.boxes, atol=1e-2)


def test_other_models_ask_for_their_config(exported, image):
    config, out = exported('faster')
    with pytest.raises(ValueError, match='decoding takes the host: give its'):
        predict_file(out, image)
    found = predict_with_host(out, image, config=config)
    assert len(found.boxes) == 20


def test_the_command_writes_pictures_and_json(
    exported, image, tmp_path, capsys
):
    _, out = exported('retinanet')
    options = [str(out), str(image), '--score', '0']
    command.main([*options, '--out', str(tmp_path / 'a.json')])
    printed = capsys.readouterr().out
    assert '... and' not in printed
    assert printed.endswith(f'wrote {tmp_path / "a.json"}\n')
    found = json.loads((tmp_path / 'a.json').read_text())
    assert len(found['boxes']) == 20
    command.main([*options, '--out', str(tmp_path / 'a.png')])
    drawn = cv2.imread(str(tmp_path / 'a.png'))
    assert drawn.shape == (90, 140, 3)
    assert (drawn != cv2.imread(str(image))).any()
    command.main([*options[:2], '--score', '1'])
    assert re.search(
        r'no box scores 1 or more; the best has 0\.\d+: lower --score',
        capsys.readouterr().out,
    )


def test_an_image_without_boxes_is_no_question_of_the_score():
    empty = Prediction(
        boxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, int)
    )
    assert command.lines(empty, score=0.0) == ['nothing found']


def test_the_command_refuses_in_one_sentence(exported, image, tmp_path):
    _, out = exported('retinanet')
    with pytest.raises(SystemExit, match='there is no image'):
        command.main([str(out), str(tmp_path / 'none.png')])
    with pytest.raises(SystemExit, match='there is no ONNX file'):
        command.main([str(tmp_path / 'none.onnx'), str(image)])


def test_the_benchmark_command(exported, tmp_path, capsys):
    _, out = exported('retinanet')
    target = tmp_path / 'speed.json'
    other = tmp_path / 'other.onnx'
    other.write_bytes(out.read_bytes())
    benchmark.main(
        [
            str(out),
            '--against',
            str(other),
            '--runs',
            '2',
            '--warmup',
            '1',
            '--json',
            str(target),
        ]
    )
    text = capsys.readouterr().out
    assert 'Medians of 2 runs, 1 thread(s), batch 1, onnxruntime.' in text
    assert '0 products run in integers' in text
    assert 'float in the model' in text
    found = json.loads(target.read_text())
    assert found['timings'][1]['cpu_ratio'] > 0
    assert sum(found['time_shares'].values()) == pytest.approx(1, abs=0.01)


def test_the_benchmark_command_times_openvino(exported, tmp_path, capsys):
    find_runtime('openvino')
    _, out = exported('retinanet')
    target = tmp_path / 'speed.json'
    options = ['--runs', '1', '--warmup', '0', '--json', str(target)]
    benchmark.main([str(out), '--runtime', 'openvino', *options])
    assert 'batch 1, openvino.' in capsys.readouterr().out
    found = json.loads(target.read_text())
    assert found['timings'][0]['cpu_ms'] > 0
    assert 'float_layers' not in found


def test_boxes_above_a_score():
    found = Prediction(
        boxes=np.zeros((2, 4)),
        scores=np.array([0.9, 0.1]),
        labels=np.array([1, 5]),
        classes=['a', 'b'],
    )
    assert found.above(0.5).to_dict() == {
        'boxes': [{'class': 'b', 'score': 0.9, 'box': [0.0] * 4}]
    }
    assert found.name(5) == '5'


def test_shares_of_a_map():
    labels = np.array([[0, 0], [2, 0]], np.uint8)
    found = Prediction(label_map=labels, classes=['a', 'b', 'c'])
    assert found.above(1.0) is found
    assert found.to_dict() == {'shares': {'a': 0.75, 'c': 0.25}}
    assert command.draw(np.zeros((2, 2, 3)), found).shape == (2, 2, 3)


def test_other_samples_are_refused():
    with pytest.raises(ValueError, match='neither boxes nor a map'):
        of_sample(object())
