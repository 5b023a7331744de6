# GANet on TuSimple, cropped to rows 160 to 720.
_base_ = [
    './_base_/models/ganet_r18.py',
    './_base_/datasets/tusimple.py',
    './_base_/schedules/adam_poly.py',
    './_base_/runtime/lane.py',
]
input_frame = dict(top=160, size=(320, 800))
train_dataloader = dict(batch_size=32, dataset=dict(input_frame=input_frame))
val_dataloader = dict(dataset=dict(input_frame=input_frame))
test_dataloader = dict(dataset=dict(input_frame=input_frame))

model = dict(test_cfg=dict(score_thr=0.3, cluster_radius=4.0, min_points=7))

optim_wrapper = dict(optimizer=dict(lr=1e-3))
train_cfg = dict(max_epochs=70)
