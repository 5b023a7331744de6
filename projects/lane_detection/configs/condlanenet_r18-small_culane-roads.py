# CondLaneNet on a ResNet-18 of a quarter of its width, trained from scratch on
# culane_mini and drawn roads at 144x400.
_base_ = [
    './_base_/models/condlanenet_r18.py',
    './_base_/datasets/culane_roads.py',
    '../../../configs/_base_/schedules/adamw_cosine_ema.py',
    './_base_/runtime/lane.py',
]
model = dict(
    backbone=dict(base_channels=16, init_cfg=None),
    neck=dict(in_channels=[32, 64, 128]),
    head=dict(img_size=(144, 400)),
    # The heat map has 9x25 cells instead of 20x50.
    train_cfg=dict(radius=3),
    test_cfg=dict(seed_distance=2.0),
)

train_cfg = dict(max_epochs=10, val_interval=10)
