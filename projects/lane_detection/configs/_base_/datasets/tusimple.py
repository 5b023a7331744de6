# TuSimple, 1280x720: all archives unpacked into one folder.
_base_ = ['./pipelines.py', './loaders.py']
dataset_type = 'TuSimpleDataset'
data_root = 'data/tusimple/'
input_frame = dict(top=0, size=(360, 640))

train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file=['label_data_0313.json', 'label_data_0601.json'],
        input_frame=input_frame,
        pipeline=_base_.train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='label_data_0531.json',
        input_frame=input_frame,
        test_mode=True,
        pipeline=_base_.test_pipeline,
    ),
)
test_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='test_label.json',
        input_frame=input_frame,
        test_mode=True,
        pipeline=_base_.test_pipeline,
    ),
)

val_evaluator = dict(type='TuSimpleMetric')
test_evaluator = val_evaluator
