# BezierLaneNet on TuSimple.
_base_ = [
    './_base_/models/bezierlanenet_r18.py',
    './_base_/datasets/tusimple.py',
    './_base_/schedules/adam_cosine.py',
    './_base_/runtime/lane.py',
]
train_dataloader = dict(batch_size=20)

model = dict(test_cfg=dict(score_thr=0.5, max_lanes=5, num_samples=360))

optim_wrapper = dict(
    optimizer=dict(lr=6e-4),
    paramwise_cfg=dict(custom_keys=dict(conv_offset=dict(lr_mult=0.1))),
)
train_cfg = dict(max_epochs=400, val_interval=40)
