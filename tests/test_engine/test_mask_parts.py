import copy

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from exported_models import assert_same, preprocessed, with_own_parts
from mmdet.structures import DetDataSample
from tiny_detectors import BACKBONE, build_settings, change, read_zoo

from taskptq.engine.network_parts import parts_of
from taskptq.modules.base import Scheme
from taskptq.modules.product_mode import own

SIZE = 64
NECK = {'in_channels': [8, 16, 32, 64], 'out_channels': 16}
TEST = {'score_thr': 0.0, 'nms_pre': 60, 'max_per_img': 8}
BOX_HEAD = {'in_channels': 16, 'feat_channels': 16}
NORM = {'norm_cfg': {'type': 'GN', 'num_groups': 4}}
DECODER = {
    'layer_cfg.self_attn_cfg': {'embed_dims': 16, 'num_heads': 2},
    'layer_cfg.cross_attn_cfg': {'embed_dims': 16, 'num_heads': 2},
    'layer_cfg.ffn_cfg': {'embed_dims': 16, 'feedforward_channels': 32},
}


def below(path, changes):
    return {f'{path}.{key}': values for key, values in changes.items()}


QUERIES = {
    'backbone': BACKBONE,
    'panoptic_head': {
        'in_channels': [8, 16, 32, 64],
        'feat_channels': 16,
        'out_channels': 16,
        'num_things_classes': 2,
        'num_stuff_classes': 1,
        'num_queries': 5,
    },
    'panoptic_head.positional_encoding': {'num_feats': 8},
    'panoptic_head.transformer_decoder': {'num_layers': 2},
    'panoptic_head.loss_cls': {'class_weight': [1.0] * 3 + [0.1]},
    'panoptic_fusion_head': {'num_things_classes': 2, 'num_stuff_classes': 1},
    'test_cfg': {'max_per_image': 6},
    **below('panoptic_head.transformer_decoder', DECODER),
}
# name -> config of the zoo, what shrinks it by path
ZOO = {
    'solo': (
        'solo/solo_r50_fpn_1x_coco.py',
        {
            'backbone': BACKBONE,
            'neck': NECK,
            'mask_head': {
                **BOX_HEAD,
                **NORM,
                'stacked_convs': 1,
                'num_grids': [8, 6, 4, 3, 2],
            },
            'test_cfg': {'score_thr': 0.0, 'mask_thr': 0.3, 'filter_thr': 0.0},
        },
    ),
    'solov2': (
        'solov2/solov2_r50_fpn_1x_coco.py',
        {
            'backbone': BACKBONE,
            'neck': NECK,
            'mask_head': {
                **BOX_HEAD,
                **NORM,
                'stacked_convs': 1,
                'num_grids': [8, 6, 4, 3, 2],
            },
            'mask_head.mask_feature_head': {
                **NORM,
                'feat_channels': 32,
                'out_channels': 32,
            },
            'test_cfg': {'score_thr': 0.0, 'mask_thr': 0.3, 'filter_thr': 0.0},
        },
    ),
    'condinst': (
        'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
        {
            'backbone': BACKBONE,
            'neck': NECK,
            'bbox_head': {**BOX_HEAD, **NORM, 'stacked_convs': 1},
            'mask_head.mask_feature_head': {
                'in_channels': 16,
                'feat_channels': 16,
                'num_stacked_convs': 1,
            },
            'test_cfg': TEST,
        },
    ),
    'yolact': (
        'yolact/yolact_r50_1xb8-55e_coco.py',
        {
            'backbone': BACKBONE,
            'neck': NECK,
            'bbox_head': BOX_HEAD,
            'bbox_head.anchor_generator': {
                'strides': [8, 16, 32, 64, 128],
                'centers': [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)],
            },
            'mask_head': {'in_channels': 16},
            'test_cfg': TEST,
        },
    ),
    'mask2former': (
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
        {
            **QUERIES,
            'panoptic_head.pixel_decoder.encoder': {'num_layers': 1},
            'panoptic_head.pixel_decoder.encoder.layer_cfg.self_attn_cfg': {
                'embed_dims': 16,
                'num_heads': 2,
            },
            'panoptic_head.pixel_decoder.encoder.layer_cfg.ffn_cfg': {
                'embed_dims': 16,
                'feedforward_channels': 32,
            },
            'panoptic_head.pixel_decoder.norm_cfg': {'num_groups': 4},
            'panoptic_head.pixel_decoder.positional_encoding': {
                'num_feats': 8
            },
        },
    ),
    'maskformer': (
        'maskformer/maskformer_r50_ms-16xb1-75e_coco.py',
        {
            **QUERIES,
            'panoptic_head.pixel_decoder.norm_cfg': {'num_groups': 4},
            'panoptic_head.pixel_decoder.encoder': {'num_layers': 1},
            'panoptic_head.pixel_decoder.encoder.layer_cfg.self_attn_cfg': {
                'embed_dims': 16,
                'num_heads': 2,
            },
            'panoptic_head.pixel_decoder.encoder.layer_cfg.ffn_cfg': {
                'embed_dims': 16,
                'feedforward_channels': 32,
            },
            'panoptic_head.pixel_decoder.positional_encoding': {
                'num_feats': 8
            },
        },
    ),
}
ONE_STAGE = ['solo', 'solov2', 'condinst', 'yolact']


def build(name):
    path, shrunk = ZOO[name]
    settings = copy.deepcopy(read_zoo(path))
    for key, values in shrunk.items():
        change(settings, key, values)
    return build_settings(settings).eval()


def batch_of(*sizes):
    """Random images; the smaller ones are padded."""
    torch.manual_seed(0)
    inputs, samples = [], []
    for height, width in sizes:
        inputs.append(torch.randint(0, 255, (3, height, width)).byte())
        shape = {'img_shape': (height, width), 'ori_shape': (height, width)}
        meta = {**shape, 'scale_factor': (1.0, 1.0)}
        samples.append(DetDataSample(metainfo=meta))
    return {'inputs': inputs, 'data_samples': samples}


def predictions(model, batch):
    """Scores, labels and masks of a batch."""
    with torch.no_grad():
        samples = model.test_step(copy.deepcopy(batch))
    found = []
    for sample in samples:
        if 'pred_panoptic_seg' in sample:
            found.append(torch.as_tensor(sample.pred_panoptic_seg.sem_seg))
        if 'pred_instances' in sample:
            instances = sample.pred_instances
            assert len(instances) > 0
            found += [instances.scores, instances.labels]
            found.append(torch.as_tensor(instances.masks).float())
    return found


@pytest.mark.parametrize('name', ZOO)
def test_the_host_makes_masks_of_what_a_part_computes(name):
    model = build(name)
    batch = batch_of((SIZE, SIZE), (SIZE, SIZE - 24))
    parts = parts_of(model).parts(preprocessed(model, batch))
    assert [part.name for part in parts] == ['network']
    assert parts[0].dynamic_axes['images'] == {0: 'batch'}
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch))


@pytest.mark.parametrize('name', ['solov2', 'yolact', 'mask2former'])
def test_one_part_computes_other_images(name):
    model = build(name)
    parts = parts_of(model).parts(preprocessed(model, batch_of((SIZE, SIZE))))
    host = with_own_parts(model, parts)
    other = batch_of((SIZE - 8, SIZE), (SIZE, SIZE), (SIZE, SIZE))
    assert_same(predictions(host, other), predictions(model, other))


def test_padding_is_an_input_where_the_head_reads_it():
    data = batch_of((SIZE, SIZE), (SIZE, SIZE - 24))
    for name, expected in (
        ('maskformer', ('images', 'padding')),
        ('mask2former', ('images',)),
    ):
        model = build(name)
        (part,) = parts_of(model).parts(preprocessed(model, data))
        assert part.input_names == expected


def test_heads_of_another_kind_are_refused(monkeypatch):
    model = build('mask2former')
    head = model.panoptic_head
    head.__class__ = type('Other', (type(head),), {'forward': lambda: None})
    with pytest.raises(ValueError, match=r'Other.*NetworkParts'):
        parts_of(model).parts({})
    model = build('condinst')
    del model.mask_head.mask_feature_head
    with pytest.raises(ValueError, match='has none of mask_feature_head'):
        parts_of(model).parts({})
    monkeypatch.setattr(type(model.mask_head), 'predict', lambda self: None)
    with pytest.raises(ValueError, match=r'CondInstMaskHead.*predict\(\)'):
        parts_of(model).parts({})


@pytest.mark.parametrize('name', ['maskformer', 'condinst'])
def test_heads_whose_products_are_quantized_are_known(name):
    model = build(name)
    head = getattr(model, 'panoptic_head', None) or model.mask_head
    own(head, 'forward', scheme=Scheme())
    data = preprocessed(model, batch_of((SIZE, SIZE)))
    assert len(parts_of(model).parts(data)) == 1
