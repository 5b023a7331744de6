# BezierLaneNet on the first three stages of a ResNet-18: stride 16.
model = dict(
    type='LaneDetector',
    data_preprocessor=dict(
        type='LaneDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(2,),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    neck=dict(
        type='BezierNeck', in_channels=256, mid_channels=64, dilations=(4, 8)
    ),
    head=dict(
        type='BezierLaneHead',
        in_channels=256,
        aux_channels=256,
        lane_width=8.0,
    ),
    train_cfg=dict(window=9, num_samples=100),
    test_cfg=dict(score_thr=0.95, window=9, max_lanes=4, num_samples=50),
)
