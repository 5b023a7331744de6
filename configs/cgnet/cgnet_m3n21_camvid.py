# CGNet (M3N21) as its authors trained it on CamVid's train and val images at
# their own size, with the means of B, G and R on the channels R, G and B.
_base_ = [
    __import__('mmseg').__path__[0] + '/.mim/configs/_base_/models/cgnet.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/adamw_cosine_ema.py',
    '../_base_/runtime/mmseg.py',
]

norm_cfg = dict(type='BN', eps=1e-3, requires_grad=True)
image_scale = (480, 360)  # width, height in pixels

model = dict(
    data_preprocessor=dict(
        mean=[105.65774536, 103.32983398, 99.62540436],
        std=[1, 1, 1],
        bgr_to_rgb=True,
        size=image_scale[::-1],
    ),
    backbone=dict(norm_cfg=norm_cfg),
    decode_head=dict(
        num_classes=11,
        norm_cfg=norm_cfg,
        loss_decode=dict(class_weight=None),
    ),
)

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
