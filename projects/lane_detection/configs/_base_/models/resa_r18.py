# RESA on a ResNet-18 whose last two stages are dilated: stride 8. feat_shape
# is that of 288x800 inputs.
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
        num_stages=4,
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        out_indices=(3,),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    neck=dict(
        type='RESANeck', in_channels=512, channels=128, num_steps=4, alpha=2.0
    ),
    head=dict(
        type='SegmentationHead',
        in_channels=128,
        feat_shape=(36, 100),
        num_slots=4,
        exist_from='features',
        decoder=dict(type='BilateralUpsampler', in_channels=128),
    ),
    train_cfg=dict(
        seg_loss='dice', seg_weight=2.0, exist_weight=0.1, lane_width=16
    ),
    test_cfg=dict(exist_thr=0.5, score_thr=0.3, row_step=20, blur=9),
)
