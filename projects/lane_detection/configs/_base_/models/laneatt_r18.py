# LaneATT on whole frames of 360x640, channels B, G, R in [0, 1]. All 2784
# anchors; the paper keeps the 1000 that its training set uses most, see
# `python -m lane_detection.select_anchors` and the head's `anchor_file`.
model = dict(
    type='LaneDetector',
    data_preprocessor=dict(
        type='LaneDataPreprocessor',
        mean=[0.0, 0.0, 0.0],
        std=[255.0, 255.0, 255.0],
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        num_stages=4,
        out_indices=(3,),
        norm_cfg=dict(type='BN', requires_grad=True),
        norm_eval=False,
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
    ),
    head=dict(
        type='LaneATTHead',
        in_channels=512,
        img_size=(360, 640),
        feat_channels=64,
        stride=32,
    ),
    train_cfg=dict(
        positive=15.0, negative=20.0, nms=dict(threshold=15.0, max_keep=3000)
    ),
    test_cfg=dict(score_thr=0.5, nms_thr=50.0, max_lanes=4),
)
