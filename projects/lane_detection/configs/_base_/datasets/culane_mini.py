# One clip of CULane: 130 training and 40 validation frames.
_base_ = ['./pipelines.py', './small_loaders.py']
dataset_type = 'CULaneDataset'
data_root = 'data/culane_mini/'
input_frame = dict(top=250, size=(144, 400), reduce=2)

train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='list/train.txt',
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
test_dataloader = val_dataloader

val_evaluator = dict(type='CULaneMetric')
test_evaluator = val_evaluator
