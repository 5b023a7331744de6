# GANet on a ResNet-18 whose stem, first stage and statistics stay as they
# were pretrained, with its lane-aware feature aggregation.
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
        frozen_stages=1,
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    neck=dict(
        type='TransFPN',
        in_channels=[128, 256, 512],
        out_channels=64,
        key_channels=16,
        # The heads have their own.
        smooth=False,
    ),
    head=dict(
        type='GANetHead',
        in_channels=64,
        stride=8,
        aggregation=dict(hidden_channels=256, num_points=7),
    ),
    train_cfg=dict(radius=2),
    test_cfg=dict(score_thr=0.4, cluster_radius=5.0, min_points=10),
)
