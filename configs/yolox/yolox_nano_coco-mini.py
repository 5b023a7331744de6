# YOLOX-nano as its authors trained it on COCO; 190 images of train2017
# calibrate it, 164 of val2017 test it.
_base_ = ['mmdet::yolox/yolox_nano_8xb8-300e_coco.py']

calibration_set = dict(
    data_root='data/coco_mini/',
    ann_file='instances.json',
    data_prefix=dict(img='images/'),
)
test_set = dict(
    data_root='data/coco_mini_val/',
    ann_file='val.json',
    data_prefix=dict(img='images/'),
)
ann_file = 'data/coco_mini_val/val.json'

train_dataloader = dict(dataset=dict(dataset=calibration_set))
val_dataloader = dict(dataset=test_set)
test_dataloader = dict(dataset=test_set)
val_evaluator = dict(ann_file=ann_file)
test_evaluator = dict(ann_file=ann_file)
