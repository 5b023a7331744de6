# LSTR on whole frames of CULane.
_base_ = [
    './_base_/models/lstr_r18s.py',
    './_base_/datasets/culane.py',
    './_base_/schedules/adamw_step.py',
    './_base_/runtime/lane.py',
]
input_frame = dict(top=0, size=(288, 800))
train_dataloader = dict(dataset=dict(input_frame=input_frame))
val_dataloader = dict(dataset=dict(input_frame=input_frame))
test_dataloader = dict(dataset=dict(input_frame=input_frame))

param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, milestones=[135], gamma=0.1)
]
train_cfg = dict(max_epochs=150, val_interval=15)
