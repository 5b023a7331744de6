# FastSCNN (1.5 M) on the challenge's images, halved to 256 x 256: the score
# is accuracy / time, so the best input is a small one. Predictions return to
# 512 x 512, where the referee compares them.
_base_ = [
    __import__('mmseg').__path__[0]
    + '/.mim/configs/_base_/models/fast_scnn.py',
    '../../../configs/_base_/datasets/loaders.py',
    '../../../configs/_base_/schedules/adamw_cosine_ema.py',
    '../../../configs/_base_/runtime/mmseg.py',
]
custom_imports = dict(imports=['edge_challenge'])

num_classes = 14
image_scale = (256, 256)  # width, height in pixels
norm_cfg = dict(type='BN', requires_grad=True, momentum=0.01)
loss = dict(type='CrossEntropyLoss', use_sigmoid=False)

model = dict(
    data_preprocessor=dict(size=image_scale),
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        loss_decode=dict(**loss, loss_weight=1.0, _delete_=True),
    ),
    auxiliary_head=[
        dict(
            type='FCNHead',
            in_channels=channels,
            channels=32,
            num_convs=1,
            num_classes=num_classes,
            in_index=index,
            norm_cfg=norm_cfg,
            concat_input=False,
            align_corners=False,
            loss_decode=dict(**loss, loss_weight=0.4),
        )
        for channels, index in ((128, -2), (64, -3))
    ],
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadLPCVCAnnotations'),
    dict(
        type='RandomResize',
        scale=image_scale,
        ratio_range=(0.75, 1.75),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=image_scale, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomFlip', prob=0.5, direction='vertical'),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    # The label map stays at 512 x 512.
    dict(type='LoadLPCVCAnnotations'),
    dict(type='PackSegInputs'),
]

data_root = 'data/lpcvc/'
train_dataloader = dict(
    batch_size=16,
    dataset=dict(
        type='LPCVCDataset',
        data_root=data_root,
        data_prefix=dict(img_path='IMG/train', seg_map_path='GT/train'),
        pipeline=train_pipeline,
    ),
)
test_dataloader = dict(
    dataset=dict(
        type='LPCVCDataset',
        data_root=data_root,
        data_prefix=dict(img_path='IMG/val', seg_map_path='GT/val'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
val_dataloader = test_dataloader
val_evaluator = dict(type='LPCVCMetric')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=100)
