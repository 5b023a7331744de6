# BezierLaneNet on whole frames of CULane.
_base_ = [
    './_base_/models/bezierlanenet_r18.py',
    './_base_/datasets/culane.py',
    './_base_/schedules/adam_cosine.py',
    './_base_/runtime/lane.py',
]
input_frame = dict(top=0, size=(288, 800))
train_dataloader = dict(batch_size=20, dataset=dict(input_frame=input_frame))
val_dataloader = dict(dataset=dict(input_frame=input_frame))
test_dataloader = dict(dataset=dict(input_frame=input_frame))

optim_wrapper = dict(
    optimizer=dict(lr=6e-4),
    paramwise_cfg=dict(custom_keys=dict(conv_offset=dict(lr_mult=0.1))),
)
train_cfg = dict(max_epochs=36, val_interval=6)
