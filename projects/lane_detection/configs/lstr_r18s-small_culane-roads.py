# LSTR trained from scratch on culane_mini and drawn roads at 144x400. The
# input is small, so the last stage keeps the stride of 16.
_base_ = [
    './_base_/models/lstr_r18s.py',
    './_base_/datasets/culane_roads.py',
    '../../../configs/_base_/schedules/adamw_cosine_ema.py',
    './_base_/runtime/lane.py',
]
model = dict(backbone=dict(strides=(1, 2, 2, 1)), head=dict(dropout=0.0))

train_cfg = dict(max_epochs=30, val_interval=10)
