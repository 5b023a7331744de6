# Drawn roads in CULane's layout, made by
# `python -m lane_detection.roads --out work_dirs/roads`: the images are half
# as large as the frame of their annotations, 1640x590.
_base_ = ['./pipelines.py', './small_loaders.py']
dataset_type = 'CULaneDataset'
data_root = 'work_dirs/roads/'
input_frame = dict(top=250, size=(144, 400))

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
        category_dir='list/test_split',
        input_frame=input_frame,
        test_mode=True,
        pipeline=_base_.test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='CULaneMetric')
test_evaluator = val_evaluator
