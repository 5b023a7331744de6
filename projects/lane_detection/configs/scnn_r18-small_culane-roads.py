# SCNN of three stages of 24, 48 and 96 channels, trained from scratch on
# culane_mini and drawn roads at 144x400, a stride of 8.
_base_ = [
    './_base_/models/scnn_r18.py',
    './_base_/datasets/culane_roads.py',
    '../../../configs/_base_/schedules/adamw_cosine_ema.py',
    './_base_/runtime/lane.py',
]
model = dict(
    backbone=dict(
        base_channels=24,
        num_stages=3,
        strides=(1, 2, 1),
        dilations=(1, 1, 2),
        out_indices=(2,),
        init_cfg=None,
    ),
    neck=dict(in_channels=96, channels=64),
    head=dict(in_channels=64, feat_shape=(18, 50)),
    # About as wide as a cell of the map.
    train_cfg=dict(lane_width=36),
    test_cfg=dict(row_step=10),
)

train_cfg = dict(max_epochs=10, val_interval=10)
