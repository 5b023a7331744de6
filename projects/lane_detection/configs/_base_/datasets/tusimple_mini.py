# Ten frames of TuSimple at 512x288, with annotations in these pixels: scaled
# by 2.5 they are in pixels of 1280x720, which the metric's limits mean.
_base_ = './pipelines.py'
test_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='TuSimpleDataset',
        data_root='data/tusimple_mini/',
        ann_file='label_data.json',
        label_scale=2.5,
        input_frame=dict(top=0, size=(360, 640)),
        test_mode=True,
        pipeline=_base_.test_pipeline,
    ),
)
val_dataloader = test_dataloader

test_evaluator = dict(type='TuSimpleMetric')
val_evaluator = test_evaluator
