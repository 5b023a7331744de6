# Both small sets at once. The training frames of culane_mini are shown four
# times as often as a drawn road; scores are given for each set.
_base_ = ['./pipelines.py', './small_loaders.py']
dataset_type = 'CULaneDataset'
culane_frame = dict(top=250, size=(144, 400), reduce=2)
roads_frame = dict(top=250, size=(144, 400))

train_dataloader = dict(
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='RepeatDataset',
                times=4,
                dataset=dict(
                    type=dataset_type,
                    data_root='data/culane_mini/',
                    ann_file='list/train.txt',
                    input_frame=culane_frame,
                    pipeline=_base_.train_pipeline,
                ),
            ),
            dict(
                type=dataset_type,
                data_root='work_dirs/roads/',
                ann_file='list/train_gt.txt',
                input_frame=roads_frame,
                pipeline=_base_.train_pipeline,
            ),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type=dataset_type,
                data_root='data/culane_mini/',
                ann_file='list/val.txt',
                category='culane_mini',
                input_frame=culane_frame,
                test_mode=True,
                pipeline=_base_.test_pipeline,
            ),
            dict(
                type=dataset_type,
                data_root='work_dirs/roads/',
                ann_file='list/val.txt',
                category='roads',
                input_frame=roads_frame,
                test_mode=True,
                pipeline=_base_.test_pipeline,
            ),
        ],
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='CULaneMetric')
test_evaluator = val_evaluator
