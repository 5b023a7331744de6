# Test sets of tables for LSTR with its published CULane weights, measured in
# one pass: F1 against the annotations of culane_mini's validation frames and,
# without annotations, agreement with the float model on all frames of
# culane_mini that calibration does not use. Calibration uses the first 64
# training frames.
_base_ = '../datasets/pipelines.py'
float_lanes = '{work_dir}/float_lanes.json'
culane = dict(
    type='CULaneDataset',
    data_root='data/culane_mini/',
    input_frame=dict(top=0, size=(295, 820), reduce=1),
    test_mode=True,
    pipeline=_base_.test_pipeline,
)

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(culane, ann_file='list/train.txt', indices=64),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(culane, ann_file='list/val.txt', category='culane'),
            # The other 66 of its 130 frames.
            dict(
                culane,
                ann_file='list/train.txt',
                indices=-66,
                category='training',
            ),
        ],
    ),
)
test_dataloader = val_dataloader

reference_evaluator = dict(type='LaneDump', out=float_lanes)
val_evaluator = [
    dict(type='CULaneMetric', categories=['culane']),
    dict(
        type='CULaneMetric',
        reference=float_lanes,
        categories=['culane', 'training'],
    ),
    dict(
        type='LaneDistortionMetric',
        reference=float_lanes,
        categories=['culane', 'training'],
    ),
]
test_evaluator = val_evaluator
