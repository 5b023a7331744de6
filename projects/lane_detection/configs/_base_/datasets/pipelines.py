# The same for all data sets: crop and size are in each data set's
# `input_frame`, where a leaf config changes them.
train_pipeline = [
    dict(type='LoadLaneImage'),
    dict(type='LoadLaneAnnotations'),
    # Before the crop, where there is more road to move in.
    dict(type='LaneAffine', prob=0.7),
    dict(type='LaneCrop'),
    dict(type='LaneResize'),
    dict(type='LaneFlip', prob=0.5),
    dict(type='LanePhotometric'),
    dict(type='PackLaneInputs'),
]
test_pipeline = [
    dict(type='LoadLaneImage'),
    dict(type='LaneCrop'),
    dict(type='LaneResize'),
    # The lanes stay in original pixels, where the metrics compare them.
    dict(type='LoadLaneAnnotations'),
    dict(type='PackLaneInputs'),
]
