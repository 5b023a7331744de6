_base_ = ['./_base_/coco/faster-rcnn.py']

model = dict(sam=dict(size='vit_l'))
