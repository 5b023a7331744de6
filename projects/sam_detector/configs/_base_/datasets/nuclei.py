# Cell nuclei: micrographs of 256 to 360 px, 90 % of the nuclei below 32x32 px.
# SAM sees the image whole and in tiles of 128 px, magnified twice; the
# detector sees it magnified 1.5 times.
dataset_type = 'CocoDataset'
data_root = 'data/nuclei/'
metainfo = dict(classes=('nucleus',), palette=[(40, 120, 220)])
sam_size = 256
sam_zoom = 2.0
detector_zoom = 1.5

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='SAMViews', image_size=sam_size, zoom=sam_zoom),
    dict(type='Resize', scale_factor=detector_zoom, keep_ratio=True),
    # Boxes and masks stay in the coordinates of the original image, where
    # the metrics compare them and where they may serve as prompts.
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackSAMInputs', image_size=sam_size),
]

val_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
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
