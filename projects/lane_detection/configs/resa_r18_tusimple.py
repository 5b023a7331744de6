# RESA on TuSimple without the upper 160 rows: six slots, five steps of
# messages.
_base_ = [
    './_base_/models/resa_r18.py',
    './_base_/datasets/tusimple.py',
    './_base_/schedules/sgd_poly.py',
    './_base_/runtime/lane.py',
]
input_frame = dict(top=160, size=(368, 640))
train_dataloader = dict(batch_size=8, dataset=dict(input_frame=input_frame))
val_dataloader = dict(dataset=dict(input_frame=input_frame))
test_dataloader = dict(dataset=dict(input_frame=input_frame))

model = dict(
    neck=dict(num_steps=5),
    head=dict(feat_shape=(46, 80), num_slots=6),
    train_cfg=dict(lane_width=15),
    test_cfg=dict(score_thr=0.6, row_step=10),
)

optim_wrapper = dict(optimizer=dict(lr=0.025))
train_cfg = dict(max_epochs=50, val_interval=10)
