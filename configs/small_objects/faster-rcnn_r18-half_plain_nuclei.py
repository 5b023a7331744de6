# Faster R-CNN on the first three stages of a ResNet-18 of half width, trained
# from scratch, boxes regressed directly with Smooth-L1: the baseline of the
# grid heads beside it. Two scales on four levels give anchors from 12 to
# 136 px, and stride 16 is deep enough for nuclei.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/nuclei.py',
    '../_base_/schedules/adamw_cosine_ema.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(
    backbone=dict(
        depth=18,
        base_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(
            scales=[3, 4.243], ratios=[0.6, 1.0, 1.67], strides=[4, 8, 16, 32]
        ),
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1 / 9),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)
        ),
        bbox_head=dict(
            in_channels=64,
            fc_out_channels=256,
            num_classes=1,
            loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1.0),
        ),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=300),
        rcnn=dict(sampler=dict(num=96, pos_fraction=0.33)),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=1000, max_per_img=500),
        rcnn=dict(score_thr=0.05, max_per_img=200),
    ),
)

train_cfg = dict(max_epochs=12, val_interval=12)
