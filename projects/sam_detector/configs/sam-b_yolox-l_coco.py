_base_ = ['./_base_/coco/yolox-l.py']

model = dict(sam=dict(size='vit_b'))
