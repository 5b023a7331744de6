# RetinaNet on a ResNet-18 of quarter width, trained from scratch. Parts are
# 12 to 44 px large: three levels with anchors from 12 to 75 px.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    './_base_/parts.py',
    '../../../configs/_base_/schedules/adamw_cosine_ema.py',
    '../../../configs/_base_/runtime/mmdet.py',
]

model = dict(
    backbone=dict(
        depth=18,
        base_channels=16,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None),
    neck=dict(
        in_channels=[16, 32, 64, 128],
        out_channels=48,
        start_level=1,
        num_outs=3),
    bbox_head=dict(
        num_classes=3,
        in_channels=48,
        feat_channels=48,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=1.5, strides=[8, 16, 32])))

optim_wrapper = dict(optimizer=dict(lr=1.5e-3))
train_cfg = dict(max_epochs=40, val_interval=40)
