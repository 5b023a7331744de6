# Faster R-CNN on a ResNet-18 of half width, trained from scratch. At 320x240
# platelets are about 20 px, red cells 50 px and white cells 95 px wide: two
# scales on four levels give anchors from 16 to 181 px, nearly square.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/adamw_cosine_ema.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(
    backbone=dict(
        depth=18,
        base_channels=32,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, num_outs=4),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(
            scales=[4, 5.657], ratios=[0.7, 1.0, 1.4], strides=[4, 8, 16, 32]
        ),
    ),
    roi_head=dict(
        # A red cell covers 13x13 cells of the finest map: one bilinear sample
        # per bin of 7x7 sees all of them.
        bbox_roi_extractor=dict(
            out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=1)
        ),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=3),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=300),
        rcnn=dict(sampler=dict(num=96, pos_fraction=0.33)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)

train_cfg = dict(max_epochs=17)
