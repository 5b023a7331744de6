# A Deformable DETR of 1.7 M parameters with iterative box refinement, trained
# from scratch: ResNet-18 of half width, tokens at strides 8 and 16 (768 + 192
# of them), 128 channels, 60 queries.
_base_ = [
    '../_base_/datasets/bccd_detr.py',
    '../_base_/schedules/adamw_cosine_ema.py',
    '../_base_/runtime/mmdet.py',
]

embed_dims = 128
num_levels = 2
num_queries = 60
deformable_attention = dict(
    embed_dims=embed_dims,
    num_heads=8,
    num_levels=num_levels,
    num_points=4,
    dropout=0.0,
    batch_first=True,
)
ffn = dict(embed_dims=embed_dims, feedforward_channels=256, ffn_drop=0.0)

model = dict(
    type='DeformableDETR',
    num_queries=num_queries,
    num_feature_levels=num_levels,
    with_box_refine=True,
    as_two_stage=False,
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
        out_indices=(1, 2),
        frozen_stages=-1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        init_cfg=None,
    ),
    neck=dict(
        type='ChannelMapper',
        in_channels=[64, 128],
        kernel_size=1,
        out_channels=embed_dims,
        act_cfg=None,
        norm_cfg=dict(type='GN', num_groups=32),
        num_outs=num_levels,
    ),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(self_attn_cfg=deformable_attention, ffn_cfg=ffn),
    ),
    decoder=dict(
        num_layers=3,
        return_intermediate=True,
        layer_cfg=dict(
            self_attn_cfg=dict(
                embed_dims=embed_dims,
                num_heads=8,
                dropout=0.0,
                batch_first=True,
            ),
            cross_attn_cfg=deformable_attention,
            ffn_cfg=ffn,
        ),
        post_norm_cfg=None,
    ),
    positional_encoding=dict(
        num_feats=embed_dims // 2, normalize=True, offset=-0.5
    ),
    bbox_head=dict(
        type='DeformableDETRHead',
        num_classes=3,
        embed_dims=embed_dims,
        sync_cls_avg_factor=True,
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
    optimizer=dict(lr=5e-4, weight_decay=1e-4),
    paramwise_cfg=dict(
        custom_keys={
            'sampling_offsets': dict(lr_mult=0.1),
            'reference_points': dict(lr_mult=0.1),
        }
    ),
    clip_grad=dict(max_norm=1.0),
)
train_cfg = dict(max_epochs=70, val_interval=10)
