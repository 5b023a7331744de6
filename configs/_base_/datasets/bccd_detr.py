# Blood cells for small DETRs: at 256x192 pixels (640x480 shrunk by 2.5) every
# image has one size, so no batch needs padding masks.
_base_ = ['./bccd.py']
image_scale = (256, 192)  # width, height in pixels

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    # Mild: a cell's stain tells its class.
    dict(
        type='YOLOXHSVRandomAug',
        hue_delta=5,
        saturation_delta=30,
        value_delta=30,
    ),
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    *_base_.test_pipeline[2:],
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
