# CondLaneNet on CULane, cropped to rows 270 to 590. Optimizer and length are
# ours.
_base_ = [
    './_base_/models/condlanenet_r18.py',
    './_base_/datasets/culane.py',
    './_base_/schedules/adam_poly.py',
    './_base_/runtime/lane.py',
]
train_dataloader = dict(batch_size=32)

optim_wrapper = dict(optimizer=dict(lr=3e-4))
train_cfg = dict(max_epochs=16, val_interval=4)
