import copy

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmcv.ops')

from exported_models import (
    assert_same,
    predictions,
    preprocessed,
    with_own_parts,
)
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from tiny_detectors import BACKBONE, change

from taskptq.engine.config_model import load_config
from taskptq.engine.network_parts import parts_of


@pytest.fixture
def segmentor():
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


@pytest.mark.parametrize(
    'head',
    [
        dict(
            type='EncHead',
            in_channels=[8, 16],
            in_index=(0, 1),
            num_codes=4,
            use_se_loss=True,
            loss_se_decode=dict(type='CrossEntropyLoss', use_sigmoid=True),
        ),
        dict(type='DAHead', in_channels=16, in_index=1, pam_channels=4),
    ],
    ids=lambda head: head['type'],
)
def test_heads_with_several_outputs_hand_on_the_first(segmentor, head):
    model = segmentor()
    shared = dict(
        channels=8,
        num_classes=4,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss'),
    )
    model = segmentor(decode_head={**shared, **head})
    batch = images_of((48, 64), (48, 64))
    parts = parts_of(model).parts(preprocessed(model, batch))
    assert parts[0].output_names == ('seg_logits',)
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))


def queries_of(path):
    """A shrunk model of mmseg's zoo that classifies masks."""
    settings = copy.deepcopy(load_config(f'mmseg::{path}').model)
    size = {'embed_dims': 16, 'num_heads': 2}
    ffn = {'embed_dims': 16, 'feedforward_channels': 32}
    decoder = 'decode_head.transformer_decoder'
    pixel = 'decode_head.pixel_decoder'
    change(settings, 'backbone', {**BACKBONE, 'norm_cfg': dict(type='BN')})
    change(
        settings,
        'decode_head',
        {
            'in_channels': [8, 16, 32, 64],
            'feat_channels': 16,
            'out_channels': 16,
            'num_classes': 4,
            'num_queries': 5,
        },
    )
    change(settings, 'decode_head.positional_encoding', {'num_feats': 8})
    change(settings, decoder, {'num_layers': 2})
    change(settings, f'{decoder}.layer_cfg.self_attn_cfg', size)
    change(settings, f'{decoder}.layer_cfg.cross_attn_cfg', size)
    change(settings, f'{decoder}.layer_cfg.ffn_cfg', ffn)
    change(settings, pixel, {'norm_cfg': dict(type='GN', num_groups=4)})
    if 'encoder' in settings.decode_head.pixel_decoder:
        change(settings, f'{pixel}.encoder', {'num_layers': 1})
        change(settings, f'{pixel}.encoder.layer_cfg.self_attn_cfg', size)
        change(settings, f'{pixel}.encoder.layer_cfg.ffn_cfg', ffn)
        change(settings, f'{pixel}.positional_encoding', {'num_feats': 8})
    change(settings, 'decode_head.loss_cls', {'class_weight': [1.0] * 5})
    settings.data_preprocessor = dict(type='SegDataPreProcessor')
    with DefaultScope.overwrite_default_scope('mmseg'):
        torch.manual_seed(0)
        return MODELS.build(settings).eval()


@pytest.mark.parametrize(
    'path',
    [
        'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
        'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512.py',
    ],
    ids=['mask2former', 'maskformer'],
)
def test_segmentors_that_classify_masks(path):
    pytest.importorskip('mmdet')
    model = queries_of(path)
    batch = images_of((64, 64), (64, 64))
    parts = parts_of(model).parts(preprocessed(model, batch))
    assert parts[0].output_names == ('cls_scores', 'mask_preds')
    assert parts[0].dynamic_axes['images'] == {0: 'batch'}
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))


def test_a_head_that_resizes_by_itself_is_refused(segmentor):
    model = segmentor()
    head = model.decode_head
    head.predict = lambda feats, metas, cfg: head.forward(feats)
    with pytest.raises(ValueError, match=r'FCNHead.*predict_by_feat\(\)'):
        parts_of(model).parts(preprocessed(model, images_of((48, 64))))
