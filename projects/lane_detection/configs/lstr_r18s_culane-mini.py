# Evaluates the published weights of LSTR for CULane on forty frames of one
# clip, after `python -m lane_detection.convert_lstr data/weights/
# lstr_culane.pkl OUT`. The clip was probably among their training data.
_base_ = [
    './_base_/models/lstr_r18s.py',
    './_base_/datasets/culane_mini.py',
    './_base_/schedules/adamw_step.py',
    './_base_/runtime/lane.py',
]
input_frame = dict(top=0, size=(295, 820), reduce=1)
train_dataloader = dict(dataset=dict(input_frame=input_frame))
val_dataloader = dict(dataset=dict(input_frame=input_frame))
test_dataloader = dict(dataset=dict(input_frame=input_frame))
