"""The five DETR types with a few ten thousand weights, on synthetic images."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

DIM, HEADS, QUERIES, CLASSES, SIZE = 32, 4, 12, 3, 64
NAMES = ('disc', 'square', 'bar')
FOCAL = dict(
    type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0
)
CROSS_ENTROPY = dict(
    type='CrossEntropyLoss',
    bg_cls_weight=0.1,
    use_sigmoid=False,
    loss_weight=1.0,
    class_weight=1.0,
)


def common(levels, **kwargs):
    """What all types share: backbone, neck, matching."""
    norm = dict(type='GN', num_groups=4) if levels == 2 else None
    score = (
        'ClassificationCost' if kwargs['type'] == 'DETR' else 'FocalLossCost'
    )
    return dict(
        num_queries=QUERIES,
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[128.0] * 3,
            std=[64.0] * 3,
            pad_size_divisor=1,
        ),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=8,
            num_stages=3,
            strides=(1, 2, 2),
            dilations=(1, 1, 1),
            out_indices=(1, 2)[2 - levels :],
            norm_eval=False,
            init_cfg=None,
        ),
        neck=dict(
            type='ChannelMapper',
            in_channels=[16, 32][2 - levels :],
            kernel_size=1,
            out_channels=DIM,
            act_cfg=None,
            norm_cfg=norm,
            num_outs=levels,
        ),
        train_cfg=dict(
            assigner=dict(
                type='HungarianAssigner',
                match_costs=[
                    dict(type=score, weight=2.0),
                    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                    dict(type='IoUCost', iou_mode='giou', weight=2.0),
                ],
            )
        ),
        test_cfg=dict(max_per_img=QUERIES),
        **kwargs,
    )


def head(kind, loss_cls):
    return dict(
        type=kind,
        num_classes=CLASSES,
        embed_dims=DIM,
        loss_cls=loss_cls,
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    )


def plain():
    return dict(embed_dims=DIM, num_heads=HEADS, batch_first=True)


def conditional(cross):
    return dict(embed_dims=DIM, num_heads=HEADS, cross_attn=cross)


def deformable():
    return dict(
        embed_dims=DIM,
        num_heads=HEADS,
        num_levels=2,
        num_points=2,
        batch_first=True,
    )


def ffn():
    return dict(embed_dims=DIM, feedforward_channels=2 * DIM, ffn_drop=0.0)


def encoder(attention):
    return dict(
        num_layers=1, layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn())
    )


def decoder(own, cross, **kwargs):
    return dict(
        num_layers=2,
        return_intermediate=True,
        layer_cfg=dict(self_attn_cfg=own, cross_attn_cfg=cross, ffn_cfg=ffn()),
        **kwargs,
    )


def position(**kwargs):
    return dict(num_feats=DIM // 2, normalize=True, **kwargs)


MODELS = {
    'detr': lambda: common(
        1,
        type='DETR',
        encoder=encoder(plain()),
        decoder=decoder(plain(), plain()),
        positional_encoding=position(),
        bbox_head=head('DETRHead', CROSS_ENTROPY),
    ),
    'conditional': lambda: common(
        1,
        type='taskptq.SmallConditionalDETR',
        encoder=encoder(plain()),
        decoder=decoder(conditional(False), conditional(True)),
        positional_encoding=position(),
        bbox_head=head('ConditionalDETRHead', FOCAL),
    ),
    'dab': lambda: common(
        1,
        type='DABDETR',
        encoder=encoder(plain()),
        decoder=decoder(
            conditional(False),
            conditional(True),
            query_dim=4,
            query_scale_type='cond_elewise',
            with_modulated_hw_attn=True,
        ),
        positional_encoding=position(temperature=20),
        bbox_head=head('DABDETRHead', FOCAL),
    ),
    'deformable': lambda: common(
        2,
        type='DeformableDETR',
        num_feature_levels=2,
        with_box_refine=True,
        encoder=encoder(deformable()),
        decoder=decoder(plain(), deformable(), post_norm_cfg=None),
        positional_encoding=position(offset=-0.5),
        bbox_head=head('DeformableDETRHead', FOCAL),
    ),
    'dino': lambda: common(
        2,
        type='DINO',
        num_feature_levels=2,
        with_box_refine=True,
        as_two_stage=True,
        encoder=encoder(deformable()),
        decoder=decoder(plain(), deformable(), post_norm_cfg=None),
        positional_encoding=position(temperature=20),
        bbox_head=head('DINOHead', FOCAL),
        dn_cfg=dict(
            label_noise_scale=0.5,
            box_noise_scale=1.0,
            group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=10),
        ),
    ),
}


def write_images(folder, *, first, count):
    """Write a COCO set of coloured boxes on noise; returns its json."""
    import mmcv

    generator = np.random.default_rng(first)
    images, boxes = [], []
    for number in range(first, first + count):
        image = generator.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
        for _ in range(3):
            kind = int(generator.integers(CLASSES))
            x, y = generator.integers(2, 40, 2)
            width, height = generator.integers(8, 20, 2)
            image[y : y + height, x : x + width, kind] = 220
            boxes.append(
                {
                    'id': len(boxes) + 1,
                    'image_id': number,
                    'category_id': kind + 1,
                    'iscrowd': 0,
                    'bbox': [int(v) for v in (x, y, width, height)],
                    'area': int(width * height),
                }
            )
        mmcv.imwrite(image, str(folder / f'{number}.png'))
        images.append(
            {
                'id': number,
                'file_name': f'{number}.png',
                'width': SIZE,
                'height': SIZE,
            }
        )
    path = folder / f'from{first}.json'
    path.write_text(
        json.dumps(
            {
                'images': images,
                'annotations': boxes,
                'categories': [
                    {'id': i + 1, 'name': name} for i, name in enumerate(NAMES)
                ],
            }
        )
    )
    return path


def dataset(path, pipeline):
    return dict(
        type='CocoDataset',
        metainfo=dict(classes=NAMES),
        ann_file=str(path),
        data_prefix=dict(img=str(path.parent)),
        test_mode=True,
        pipeline=pipeline,
    )


@pytest.fixture
def host_scope():
    """Restore mmengine's global default scope after the test."""
    from mmengine.registry import DefaultScope

    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture
def build_detr(host_scope):
    """Build a DETR of a type, float, in eval mode, with decided classes."""
    from taskptq.apis import build_model

    def build(kind):
        from mmengine.config import Config

        model = build_model(
            Config(dict(default_scope='mmdet', model=MODELS[kind]()))
        )
        with torch.no_grad():
            if hasattr(model, 'level_embed'):
                nn.init.normal_(model.level_embed)
            for name, parameter in model.named_parameters():
                # Else nothing would be foreground to the float model.
                if 'cls' in name and name.endswith('weight'):
                    parameter.mul_(8)
        return model

    return build


@pytest.fixture
def detr_config(tmp_path):
    """Config that tests a type on two images; two others calibrate."""
    from mmengine.config import Config

    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(SIZE, SIZE), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(
            type='PackDetInputs',
            meta_keys=(
                'img_id',
                'img_path',
                'ori_shape',
                'img_shape',
                'scale_factor',
            ),
        ),
    ]
    folder = tmp_path / 'images'
    folder.mkdir()
    test = write_images(folder, first=1, count=2)
    train = write_images(folder, first=11, count=2)
    count = iter(range(100))

    def make(kind, *, checkpoint, hook):
        number = next(count)
        hook = copy.deepcopy(hook)
        hook['calibration'] = dict(
            num_images=2, dataset=dataset(train, pipeline)
        )
        return Config(
            dict(
                default_scope='mmdet',
                model=MODELS[kind](),
                test_dataloader=dict(
                    batch_size=2,
                    num_workers=0,
                    sampler=dict(type='DefaultSampler', shuffle=False),
                    dataset=dataset(test, pipeline),
                ),
                test_evaluator=dict(
                    type='CocoMetric',
                    ann_file=str(test),
                    metric='bbox',
                    outfile_prefix=str(tmp_path / f'run{number}'),
                ),
                test_cfg=dict(type='TestLoop'),
                custom_hooks=[dict(type='taskptq.PTQHook', **hook)],
                default_hooks=dict(logger=None, checkpoint=None),
                experiment_name=f'{tmp_path.name}_{number}',
                work_dir=str(tmp_path / f'work{number}'),
                load_from=str(checkpoint),
                log_level='WARNING',
            )
        )

    return make
