"""The scripts print what taskptq's own decoding finds."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('onnxruntime')

import cv2
from mmengine.config import Config, ConfigDict
from tiny_detectors import zoo_settings

from taskptq import apis
from taskptq.engine.onnx_predict import predict_file

FOLDER = Path(__file__).resolve().parents[1]
NMS = dict(type='nms', iou_threshold=0.65)
NORMAL = dict(mean=[100.0, 110, 120], std=[50.0, 60, 70], bgr_to_rgb=True)
LOAD = dict(type='LoadImageFromFile')


def retinanet():
    changes = {
        '': {
            'data_preprocessor': dict(
                type='DetDataPreprocessor', pad_size_divisor=32, **NORMAL
            ),
        },
        'test_cfg': dict(
            score_thr=0.0,
            nms_pre=-1,
            min_bbox_size=-1,
            nms=NMS,
            max_per_img=-1,
        ),
    }
    steps = [dict(type='Resize', scale=(96, 64), keep_ratio=True)]
    return zoo_settings('retinanet', changes), steps


def yolox():
    model = dict(
        type='YOLOX',
        data_preprocessor=dict(type='DetDataPreprocessor'),
        backbone=dict(
            type='CSPDarknet', deepen_factor=0.33, widen_factor=0.125
        ),
        neck=dict(
            type='YOLOXPAFPN',
            in_channels=[32, 64, 128],
            out_channels=16,
            num_csp_blocks=1,
        ),
        bbox_head=dict(
            type='YOLOXHead', num_classes=3, in_channels=16, feat_channels=16
        ),
        test_cfg=dict(score_thr=0.0, nms=NMS),
    )
    steps = [
        dict(type='Resize', scale=(96, 96), keep_ratio=True),
        dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0,) * 3)),
    ]
    return model, steps


def segformer():
    model = dict(
        type='mmseg.EncoderDecoder',
        data_preprocessor=dict(type='mmseg.SegDataPreProcessor', **NORMAL),
        backbone=dict(
            type='mmseg.MixVisionTransformer',
            embed_dims=8,
            num_layers=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
        ),
        decode_head=dict(
            type='mmseg.SegformerHead',
            in_channels=[8, 8, 16, 16],
            in_index=[0, 1, 2, 3],
            channels=8,
            num_classes=3,
            norm_cfg=dict(type='BN'),
            align_corners=False,
        ),
        test_cfg=dict(mode='whole'),
    )
    return model, [dict(type='Resize', scale=(96, 64), keep_ratio=False)]


SIZES = {'retinanet': (64, 96), 'yolox': (96, 96), 'segformer': (64, 96)}
MODELS = {'retinanet': retinanet, 'yolox': yolox, 'segformer': segformer}


@pytest.fixture(params=list(MODELS))
def exported(request, tmp_path):
    """A script, and a file that it reads."""
    model, steps = MODELS[request.param]()
    config = Config(
        ConfigDict(
            default_scope='mmdet',
            model=model,
            test_dataloader=dict(dataset=dict(pipeline=[LOAD, *steps])),
        )
    )
    torch.manual_seed(0)
    checkpoint, out = tmp_path / 'float.pth', tmp_path / 'm.onnx'
    model = apis.build_model(config)
    model.init_weights()
    torch.save(model.state_dict(), checkpoint)
    apis.export_onnx(
        config,
        checkpoint,
        out=out,
        float_model=True,
        num_images=0,
        size=SIZES[request.param],
    )
    return request.param, with_classes(out)


def with_classes(path):
    """Name the classes, which a data set would."""
    import onnx

    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key == 'taskptq.classes':
            entry.value = '["a", "b", "c"]'
    onnx.save(model, path)
    return path


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_script_finds_what_taskptq_finds(exported, tmp_path, capsys):
    name, out = exported
    # A smooth picture: resizing by a factor or to a size differs little.
    rough = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    picture = tmp_path / 'picture.png'
    cv2.imwrite(str(picture), cv2.resize(rough, (144, 96)))
    expected = predict_file(out, picture, threads=1)
    if name == 'segformer':
        target = tmp_path / 'map.png'
        load(name).main(str(out), str(picture), str(target))
        found = cv2.imread(str(target), cv2.IMREAD_GRAYSCALE)
        assert (found == expected.label_map).mean() > 0.97
        return
    least = float(np.sort(expected.scores)[-8])
    load(name).main(str(out), str(picture), least - 1e-4)
    lines = capsys.readouterr().out.splitlines()
    boxes = expected.above(least - 1e-4).to_dict()['boxes']
    assert 8 <= len(lines) <= len(boxes) + 1
    for line, box in list(zip(lines, boxes, strict=False))[:5]:
        label, score, place = line.split(maxsplit=2)
        assert label == box['class']
        assert float(score) == pytest.approx(box['score'], abs=2e-3)
        x, y, width, height = map(float, place.strip('[]').split(','))
        corners = (x, y, x + width, y + height)
        if name == 'yolox':  # retinanet's are clipped by the host
            assert corners == pytest.approx(box['box'], abs=2)
