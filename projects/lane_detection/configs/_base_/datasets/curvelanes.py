# CurveLanes: three sizes of frames, any number of lanes. The lanes of its
# test split are not public, so tests run on the validation split.
_base_ = ['./pipelines.py', './loaders.py']
dataset_type = 'CurveLanesDataset'
data_root = 'data/curvelanes/'
# First row of the crop, by height of the frame.
input_frame = dict(top=[(1440, 640), (720, 368), (660, 180)], size=(320, 800))

train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='train/train.txt',
        data_prefix=dict(img='train/'),
        input_frame=input_frame,
        pipeline=_base_.train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='valid/valid.txt',
        data_prefix=dict(img='valid/'),
        input_frame=input_frame,
        test_mode=True,
        pipeline=_base_.test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='CurveLanesMetric')
test_evaluator = val_evaluator
