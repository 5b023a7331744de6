import copy

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from exported_models import (
    assert_same,
    predictions,
    preprocessed,
    with_own_parts,
)
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from tiny_detectors import build, detection_batch

from taskptq.engine.network_parts import parts_of


@pytest.mark.parametrize('name', ['retinanet', 'fcos', 'atss', 'gfl'])
def test_dense_detectors_decode_what_a_part_computes(name):
    model = build(name, {}).eval()
    batch = detection_batch()
    parts = parts_of(model).parts(preprocessed(model, batch))
    assert [part.name for part in parts] == ['network']
    assert parts[0].output_names[0] == 'cls_scores.0'
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))


def test_a_detector_of_another_kind_is_refused(monkeypatch):
    model = build('retinanet', {}).eval()
    monkeypatch.setattr(type(model), 'predict', lambda self: None)
    with pytest.raises(ValueError, match=r'RetinaNet has a predict\(\)'):
        parts_of(model).parts({})


@pytest.fixture
def segmentor():
    pytest.importorskip('mmseg')

    def make(**changes):
        head = dict(
            type='FCNHead',
            in_channels=16,
            in_index=1,
            channels=8,
            num_convs=1,
            num_classes=4,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss'),
        )
        settings = dict(
            type='EncoderDecoder',
            data_preprocessor=dict(type='SegDataPreProcessor'),
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=8,
                num_stages=2,
                strides=(1, 2),
                dilations=(1, 1),
                out_indices=(0, 1),
                norm_cfg=dict(type='BN'),
            ),
            decode_head=head,
            test_cfg=dict(mode='whole'),
        )
        settings.update(copy.deepcopy(changes))
        with DefaultScope.overwrite_default_scope('mmseg'):
            torch.manual_seed(0)
            return MODELS.build(ConfigDict(settings)).eval()

    return make


def images_of(*sizes):
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    return {
        'inputs': [
            torch.randint(0, 256, (3, *size), generator=generator).byte()
            for size in sizes
        ],
        'data_samples': [
            SegDataSample(
                metainfo=dict(
                    img_shape=size, ori_shape=(40, 52), pad_shape=size
                )
            )
            for size in sizes
        ],
    }


@pytest.mark.parametrize(
    'test_cfg',
    [
        dict(mode='whole'),
        dict(mode='slide', crop_size=(32, 32), stride=(20, 20)),
    ],
)
def test_segmentors(segmentor, test_cfg):
    model = segmentor(test_cfg=test_cfg)
    batch = images_of((48, 64), (48, 64))
    parts = parts_of(model).parts(preprocessed(model, batch))
    slides = test_cfg['mode'] == 'slide'
    assert parts[0].inputs[0].shape[-2:] == ((32, 32) if slides else (48, 64))
    assert (parts_of(model).decoding() is None) == slides
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))


def test_a_cascade_of_decode_heads(segmentor):
    first = segmentor().decode_head
    head = dict(
        type='FCNHead',
        in_channels=16,
        in_index=1,
        channels=8,
        num_convs=1,
        num_classes=4,
        align_corners=False,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss'),
    )
    refine = dict(
        type='OCRHead',
        in_channels=16,
        in_index=1,
        channels=8,
        ocr_channels=8,
        num_classes=4,
        align_corners=False,
        norm_cfg=dict(type='BN'),
        loss_decode=dict(type='CrossEntropyLoss'),
    )
    model = segmentor(
        type='CascadeEncoderDecoder', num_stages=2, decode_head=[head, refine]
    )
    assert isinstance(model.decode_head[0], type(first))
    batch = images_of((48, 64))
    parts = parts_of(model).parts(preprocessed(model, batch))
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))
