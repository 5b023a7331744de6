# RetinaNet on the first three stages of a ResNet-18 of quarter width, trained
# from scratch. Parts are 20 to 44 px large: levels of stride 8 and 16 with
# anchors of 20 to 57 px.
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
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(
        in_channels=[32, 64], out_channels=32, start_level=0, num_outs=2
    ),
    bbox_head=dict(
        num_classes=3,
        in_channels=32,
        feat_channels=32,
        stacked_convs=2,
        anchor_generator=dict(
            octave_base_scale=2.5, scales_per_octave=2, strides=[8, 16]
        ),
    ),
    # Parts overlap by less than the threshold, of whatever class.
    test_cfg=dict(
        nms=dict(type='nms', iou_threshold=0.5, class_agnostic=True),
        max_per_img=50,
    ),
)

optim_wrapper = dict(optimizer=dict(lr=3e-3))
train_cfg = dict(max_epochs=28, val_interval=7)
