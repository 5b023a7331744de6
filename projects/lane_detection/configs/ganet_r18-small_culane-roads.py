# GANet on a ResNet-18 of a quarter of its width, without its aggregation,
# trained from scratch on culane_mini and drawn roads at 144x400.
_base_ = [
    './_base_/models/ganet_r18.py',
    './_base_/datasets/culane_roads.py',
    '../../../configs/_base_/schedules/adamw_cosine_ema.py',
    './_base_/runtime/lane.py',
]
model = dict(
    backbone=dict(
        base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None
    ),
    neck=dict(in_channels=[32, 64, 128]),
    head=dict(aggregation=None),
    # The maps have 18 rows instead of 40.
    test_cfg=dict(cluster_radius=3.0, min_points=4),
)

train_cfg = dict(max_epochs=10, val_interval=10)
