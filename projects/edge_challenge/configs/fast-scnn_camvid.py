# The FastSCNN of fast-scnn_lpcvc.py on CamVid, which stands in for the
# challenge's images: street scenes, read at 256 x 192 px and scored at 480 x
# 360. Rare classes weigh more, as in segformer_mit-tiny_camvid.py.
_base_ = [
    __import__('mmseg').__path__[0]
    + '/.mim/configs/_base_/models/fast_scnn.py',
    '../../../configs/_base_/datasets/camvid.py',
    '../../../configs/_base_/schedules/adamw_cosine_ema.py',
    '../../../configs/_base_/runtime/mmseg.py',
]
custom_imports = dict(imports=['edge_challenge'])

num_classes = 11
image_scale = (256, 192)  # width, height in pixels
norm_cfg = dict(type='BN', requires_grad=True)
class_weight = [0.73, 0.62, 3.0, 0.54, 1.43, 0.97, 2.8, 2.85, 1.25, 3.0, 3.0]
loss = dict(
    type='CrossEntropyLoss', use_sigmoid=False, class_weight=class_weight
)

model = dict(
    data_preprocessor=dict(size=image_scale[::-1]),
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(
        num_classes=num_classes,
        norm_cfg=norm_cfg,
        dropout_ratio=0.0,
        loss_decode=dict(**loss, loss_weight=1.0, _delete_=True),
    ),
    # Two fifths of a training step, which more steps use better.
    auxiliary_head=None,
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=image_scale,
        ratio_range=(0.85, 1.6),
        keep_ratio=True,
    ),
    dict(type='RandomCrop', crop_size=image_scale[::-1], cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

train_dataloader = dict(batch_size=4, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_evaluator = dict(type='LPCVCMetric', _delete_=True)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_epochs=5, val_interval=5)
