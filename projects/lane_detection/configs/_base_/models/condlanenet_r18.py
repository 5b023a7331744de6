# CondLaneNet on a ResNet-18; img_size is that of the cropped frames.
model = dict(
    type='LaneDetector',
    data_preprocessor=dict(
        type='LaneDataPreprocessor',
        mean=[75.3, 76.6, 77.6],
        std=[50.5, 53.8, 54.3],
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        num_stages=4,
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    neck=dict(
        type='TransFPN',
        in_channels=[128, 256, 512],
        out_channels=64,
        key_channels=16,
        num_outs=2,
    ),
    head=dict(
        type='CondLaneHead',
        img_size=(320, 800),
        in_channels=64,
        strides=(8, 16),
        mask_channels=64,
        num_seeds=8,
    ),
    train_cfg=dict(radius=6, reg_radius=3),
    test_cfg=dict(score_thr=0.5, seed_distance=4.0),
)
