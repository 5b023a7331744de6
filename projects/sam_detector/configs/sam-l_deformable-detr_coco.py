_base_ = ['./_base_/coco/deformable-detr.py']

model = dict(sam=dict(size='vit_l'))
