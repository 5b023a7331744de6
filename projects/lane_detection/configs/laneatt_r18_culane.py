# LaneATT on whole frames of CULane.
_base_ = [
    './_base_/models/laneatt_r18.py',
    './_base_/datasets/culane.py',
    './_base_/schedules/adam_cosine.py',
    './_base_/runtime/lane.py',
]
input_frame = dict(top=0, size=(360, 640))
train_dataloader = dict(batch_size=8, dataset=dict(input_frame=input_frame))
val_dataloader = dict(dataset=dict(input_frame=input_frame))
test_dataloader = dict(dataset=dict(input_frame=input_frame))

optim_wrapper = dict(optimizer=dict(lr=3e-4))
train_cfg = dict(max_epochs=15)
