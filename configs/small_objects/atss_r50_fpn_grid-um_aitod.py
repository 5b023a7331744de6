# AI-TOD; everything else is as on COCO.
_base_ = [
    './atss_r50_fpn_grid-um_coco.py',
    '../_base_/datasets/aitod.py',
]

model = dict(bbox_head=dict(num_classes=8), test_cfg=dict(max_per_img=1500))

train_dataloader = dict(dataset=_base_.train_dataset)
val_dataloader = dict(dataset=_base_.eval_dataset)
test_dataloader = dict(dataset=_base_.eval_dataset)
val_evaluator = _base_.evaluator
test_evaluator = _base_.evaluator
