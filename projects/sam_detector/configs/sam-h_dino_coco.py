_base_ = ['./_base_/coco/dino.py']

model = dict(sam=dict(size='vit_h'))
