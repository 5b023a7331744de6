# Cell nuclei: micrographs of 256 to 520 px, 90 % of the nuclei below 32x32 px.
# Magnified 1.5 times, nuclei are 15 to 72 px wide (10th to 90th percentile,
# median 27). The set has two splits; the second one is both val and test.
_base_ = ['./loaders.py']
dataset_type = 'CocoDataset'
data_root = 'data/nuclei/'
metainfo = dict(classes=('nucleus',), palette=[(40, 120, 220)])
zoom = 1.5
crop_size = (224, 224)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=[(384, 384), (640, 640)], keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, allow_negative_crop=True),
    dict(
        type='RandomFlip',
        prob=[0.25, 0.25, 0.25],
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale_factor=zoom, keep_ratio=True),
    # The boxes stay in the coordinates of the original image, where the
    # metric compares them.
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id',
            'img_path',
            'ori_shape',
            'img_shape',
            'scale_factor',
        ),
    ),
]

train_dataloader = dict(
    num_workers=1,
    dataset=dict(
        type=dataset_type,
        metainfo=metainfo,
        data_root=data_root,
        ann_file='train.json',
        data_prefix=dict(img='images/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=1,
    dataset=dict(
        type=dataset_type,
        metainfo=metainfo,
        data_root=data_root,
        ann_file='val.json',
        data_prefix=dict(img='images/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# AP is of the 100 best boxes of an image, AP50 and the others of 1000.
val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + 'val.json',
    metric='bbox',
    proposal_nums=(100, 300, 1000),
)
test_evaluator = val_evaluator
