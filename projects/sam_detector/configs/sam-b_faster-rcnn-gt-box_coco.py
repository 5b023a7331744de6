# Annotated boxes prompt as well (the protocol of CAR-SAM): masks of every
# object, whatever the detector finds. The detector's boxes calibrate.
_base_ = ['./sam-b_faster-rcnn_coco.py']

model = dict(prompts=('detector', 'gt_box'))
test_evaluator = [
    dict(_base_.test_evaluator),
    dict(type='PromptedMaskMetric', prompts='gt_box'),
]
val_evaluator = test_evaluator
