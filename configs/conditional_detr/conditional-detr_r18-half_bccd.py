# A Conditional DETR of 2.2 M parameters, trained from scratch: ResNet-18 of
# half width up to stride 16 (16x12 tokens), 128 channels, 60 queries for the
# 30 cells that an image has at most.
_base_ = [
    '../_base_/datasets/bccd_detr.py',
    '../_base_/schedules/adamw_cosine_ema.py',
    '../_base_/runtime/mmdet.py',
]

embed_dims = 128
num_queries = 60
ffn = dict(
    embed_dims=embed_dims,
    feedforward_channels=512,
    num_fcs=2,
    ffn_drop=0.0,
    act_cfg=dict(type='ReLU', inplace=True),
)

model = dict(
    # mmdet's ConditionalDETR is tied to 256 channels.
    type='taskptq.SmallConditionalDETR',
    num_queries=num_queries,
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=1,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        init_cfg=None,
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[128],
        kernel_size=1,
        out_channels=embed_dims,
        act_cfg=None,
        norm_cfg=None,
        num_outs=1,
    ),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=embed_dims,
                num_heads=8,
                dropout=0.0,
                batch_first=True,
            ),
            ffn_cfg=ffn,
        ),
    ),
    decoder=dict(
        num_layers=3,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=embed_dims,
                num_heads=8,
                attn_drop=0.0,
                cross_attn=False,
            ),
            cross_attn_cfg=dict(
                embed_dims=embed_dims,
                num_heads=8,
                attn_drop=0.0,
                cross_attn=True,
            ),
            ffn_cfg=ffn,
        ),
    ),
    positional_encoding=dict(num_feats=embed_dims // 2, normalize=True),
    bbox_head=dict(
        type='ConditionalDETRHead',
        num_classes=3,
        embed_dims=embed_dims,
        loss_cls=dict(
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=2.0,
        ),
        loss_bbox=dict(type='L1Loss', loss_weight=5.0),
        loss_iou=dict(type='GIoULoss', loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(
            type='HungarianAssigner',
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ],
        )
    ),
    test_cfg=dict(max_per_img=num_queries),
)

optim_wrapper = dict(
    optimizer=dict(lr=5e-4, weight_decay=1e-4), clip_grad=dict(max_norm=1.0)
)
train_cfg = dict(max_epochs=110, val_interval=10)
