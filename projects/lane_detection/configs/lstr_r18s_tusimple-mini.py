# Evaluates the published weights of LSTR on ten frames of TuSimple, after
# `python -m lane_detection.convert_lstr data/weights/lstr_tusimple.pkl OUT`.
# Quantization is calibrated on frames of another data set, culane_mini.
_base_ = [
    './_base_/models/lstr_r18s.py',
    './_base_/datasets/tusimple_mini.py',
    './_base_/schedules/adamw_step.py',
    './_base_/runtime/lane.py',
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CULaneDataset',
        data_root='data/culane_mini/',
        ann_file='list/train.txt',
        input_frame=dict(top=0, size=(360, 640)),
        pipeline={{_base_.train_pipeline}},
    ),
)
