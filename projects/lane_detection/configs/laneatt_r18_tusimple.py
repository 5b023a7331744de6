# LaneATT on TuSimple.
_base_ = [
    './_base_/models/laneatt_r18.py',
    './_base_/datasets/tusimple.py',
    './_base_/schedules/adam_cosine.py',
    './_base_/runtime/lane.py',
]
train_dataloader = dict(batch_size=8)

model = dict(test_cfg=dict(score_thr=0.2, nms_thr=45.0, max_lanes=5))

optim_wrapper = dict(optimizer=dict(lr=3e-4))
train_cfg = dict(max_epochs=100, val_interval=10)
