# GANet on CULane, cropped to rows 270 to 590.
_base_ = [
    './_base_/models/ganet_r18.py',
    './_base_/datasets/culane.py',
    './_base_/schedules/adam_poly.py',
    './_base_/runtime/lane.py',
]
train_dataloader = dict(batch_size=32)

optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=60)
