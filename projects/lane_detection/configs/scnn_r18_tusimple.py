# SCNN on TuSimple: six slots, at a stride of 8 of 360x640.
_base_ = [
    './_base_/models/scnn_r18.py',
    './_base_/datasets/tusimple.py',
    './_base_/schedules/sgd_poly.py',
    './_base_/runtime/lane.py',
]
train_dataloader = dict(batch_size=20)

model = dict(
    head=dict(feat_shape=(45, 80), num_slots=6),
    train_cfg=dict(lane_width=15),
    test_cfg=dict(row_step=10),
)

optim_wrapper = dict(optimizer=dict(lr=0.2))
train_cfg = dict(max_epochs=50, val_interval=10)
