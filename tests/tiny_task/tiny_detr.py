"""Detectors of the DETR family with a few thousand weights, and their data.

Images are drawn from their paths, so nothing lies on disk.
"""

import zlib
from typing import ClassVar

import torch
from mmdet.structures import DetDataSample
from mmengine.dataset import BaseDataset
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS, TRANSFORMS
from mmengine.structures import InstanceData

HEIGHT, WIDTH, CLASSES = 32, 48, 3


@DATASETS.register_module(force=True)
class TinyBoxes(BaseDataset):
    METAINFO: ClassVar[dict] = dict(classes=('a', 'b', 'c'))

    def __init__(self, *, first=0, length=4, **kwargs):
        self.first, self.length = first, length
        super().__init__(**kwargs)

    def load_data_list(self):
        return [
            {'img_path': f'boxes/{self.first + i}.png'}
            for i in range(self.length)
        ]


@TRANSFORMS.register_module(force=True)
class TinyBoxesPack:
    def __call__(self, results):
        seed = zlib.crc32(results['img_path'].encode())
        generator = torch.Generator().manual_seed(seed)
        low = torch.rand(2, 2, generator=generator) * torch.tensor(
            [24.0, 16.0]
        )
        size = 4 + torch.rand(2, 2, generator=generator) * 12
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(HEIGHT, WIDTH),
                ori_shape=(HEIGHT, WIDTH),
                scale_factor=(1.0, 1.0),
                img_id=seed,
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([low, low + size], dim=1),
            labels=torch.tensor([0, 2]),
        )
        image = torch.randn(3, HEIGHT, WIDTH, generator=generator)
        return {'inputs': image, 'data_samples': sample}


@METRICS.register_module(force=True)
class TinyBoxesMetric(BaseMetric):
    """Keeps what was predicted, for tests to compare."""

    predictions = None

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            found = sample['pred_instances']
            self.results.append(
                torch.cat([found['bboxes'], found['scores'][:, None]], dim=1)
            )

    def compute_metrics(self, results):
        type(self).predictions = torch.stack([r.cpu() for r in results])
        return {'mean': float(self.predictions.mean())}


BACKBONE = dict(
    type='ResNet',
    depth=18,
    base_channels=8,
    num_stages=2,
    strides=(1, 2),
    dilations=(1, 1),
    out_indices=(1,),
    frozen_stages=1,
    norm_eval=True,
    norm_cfg=dict(type='BN', requires_grad=True),
    init_cfg=None,
)
FFN = dict(embed_dims=16, feedforward_channels=32, num_fcs=2, ffn_drop=0.0)
ATTENTION = dict(embed_dims=16, num_heads=2, dropout=0.0, batch_first=True)
DEFORMABLE = dict(
    embed_dims=16,
    num_heads=2,
    num_levels=1,
    num_points=2,
    dropout=0.0,
    batch_first=True,
)
COSTS = [
    dict(type='ClassificationCost', weight=1.0),
    dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
    dict(type='IoUCost', iou_mode='giou', weight=2.0),
]
LOSSES = dict(
    loss_bbox=dict(type='L1Loss', loss_weight=5.0),
    loss_iou=dict(type='GIoULoss', loss_weight=2.0),
)
COMMON = dict(
    num_queries=6,
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3
    ),
    backbone=BACKBONE,
    test_cfg=dict(max_per_img=6),
)


def neck(**kwargs):
    return dict(
        type='ChannelMapper',
        in_channels=[16],
        kernel_size=1,
        out_channels=16,
        num_outs=1,
        **kwargs,
    )


def detr():
    return dict(
        COMMON,
        type='DETR',
        neck=neck(norm_cfg=None, act_cfg=None),
        encoder=dict(
            num_layers=1, layer_cfg=dict(self_attn_cfg=ATTENTION, ffn_cfg=FFN)
        ),
        decoder=dict(
            num_layers=2,
            layer_cfg=dict(
                self_attn_cfg=ATTENTION, cross_attn_cfg=ATTENTION, ffn_cfg=FFN
            ),
            return_intermediate=True,
        ),
        positional_encoding=dict(num_feats=8, normalize=True),
        bbox_head=dict(
            type='DETRHead',
            num_classes=CLASSES,
            embed_dims=16,
            loss_cls=dict(
                type='CrossEntropyLoss',
                bg_cls_weight=0.1,
                use_sigmoid=False,
                loss_weight=1.0,
                class_weight=1.0,
            ),
            **LOSSES,
        ),
        train_cfg=dict(
            assigner=dict(type='HungarianAssigner', match_costs=COSTS)
        ),
    )


def dino():
    focal = dict(type='FocalLossCost', weight=2.0)
    return dict(
        COMMON,
        type='DINO',
        num_feature_levels=1,
        with_box_refine=True,
        as_two_stage=True,
        neck=neck(act_cfg=None, norm_cfg=dict(type='GN', num_groups=4)),
        encoder=dict(
            num_layers=1, layer_cfg=dict(self_attn_cfg=DEFORMABLE, ffn_cfg=FFN)
        ),
        decoder=dict(
            num_layers=2,
            return_intermediate=True,
            layer_cfg=dict(
                self_attn_cfg=ATTENTION, cross_attn_cfg=DEFORMABLE, ffn_cfg=FFN
            ),
            post_norm_cfg=None,
        ),
        positional_encoding=dict(
            num_feats=8, normalize=True, offset=0.0, temperature=20
        ),
        bbox_head=dict(
            type='DINOHead',
            num_classes=CLASSES,
            embed_dims=16,
            sync_cls_avg_factor=True,
            loss_cls=dict(
                type='FocalLoss',
                use_sigmoid=True,
                gamma=2.0,
                alpha=0.25,
                loss_weight=1.0,
            ),
            **LOSSES,
        ),
        dn_cfg=dict(
            label_noise_scale=0.5,
            box_noise_scale=1.0,
            group_cfg=dict(dynamic=True, num_groups=None, num_dn_queries=4),
        ),
        train_cfg=dict(
            assigner=dict(
                type='HungarianAssigner', match_costs=[focal, *COSTS[1:]]
            )
        ),
    )


def loader(*, first, length, training=False):
    return dict(
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=training),
        dataset=dict(
            type='TinyBoxes',
            first=first,
            length=length,
            test_mode=not training,
            pipeline=[dict(type='TinyBoxesPack')],
        ),
    )


def config(model):
    """The whole task of one detector, as mm configs have it."""
    return dict(
        default_scope='mmdet',
        model=model,
        train_dataloader=loader(first=100, length=4, training=True),
        val_dataloader=loader(first=0, length=4),
        test_dataloader=loader(first=50, length=4),
        val_evaluator=dict(type='TinyBoxesMetric'),
        test_evaluator=dict(type='TinyBoxesMetric'),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        val_cfg=dict(),
        test_cfg=dict(),
        optim_wrapper=dict(
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4),
            clip_grad=dict(max_norm=0.1),
            paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
        ),
        param_scheduler=[
            dict(type='MultiStepLR', milestones=[1], by_epoch=True)
        ],
        default_hooks=dict(
            logger=None, checkpoint=dict(type='CheckpointHook', interval=1)
        ),
        randomness=dict(seed=0),
        log_level='WARNING',
    )
