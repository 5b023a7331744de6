# CULane, 1640x590, with the categories of its test set.
_base_ = ['./pipelines.py', './loaders.py']
dataset_type = 'CULaneDataset'
data_root = 'data/culane/'
input_frame = dict(top=270, size=(320, 800))

train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='list/train_gt.txt',
        input_frame=input_frame,
        pipeline=_base_.train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='list/val.txt',
        input_frame=input_frame,
        test_mode=True,
        pipeline=_base_.test_pipeline,
    ),
)
test_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='list/test.txt',
        category_dir='list/test_split',
        # With an older archive of annotations there are fewer.
        expected_lanes=104886,
        input_frame=input_frame,
        test_mode=True,
        pipeline=_base_.test_pipeline,
    ),
)

val_evaluator = dict(type='CULaneMetric')
test_evaluator = val_evaluator
