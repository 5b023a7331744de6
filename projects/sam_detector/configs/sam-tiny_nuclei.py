# Trains SAM alone: views around the nuclei, prompts drawn from their masks.
_base_ = [
    './_base_/datasets/nuclei.py',
    './_base_/models/sam-tiny.py',
    '../../../configs/_base_/schedules/adamw_cosine_ema.py',
    '../../../configs/_base_/runtime/mmdet.py',
]
custom_imports = dict(imports=['sam_detector'])

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='ZoomCrop', image_size={{_base_.sam_size}}, zoom=(1.5, 2.7)),
    dict(
        type='PackSAMInputs',
        image_size={{_base_.sam_size}},
        with_detector=False,
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type={{_base_.dataset_type}},
        metainfo={{_base_.metainfo}},
        data_root={{_base_.data_root}},
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)

# Prompts of the validation: annotated boxes, in the views of a test.
val_evaluator = dict(type='PromptedMaskMetric', prompts='gt_box')
test_evaluator = val_evaluator

model = dict(train_cfg=dict(max_prompts=12))
train_cfg = dict(max_epochs=60, val_interval=60)
