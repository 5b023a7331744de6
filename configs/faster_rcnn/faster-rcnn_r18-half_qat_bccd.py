# What the 1-bit trainings of this folder share, from the float checkpoint:
# three epochs with 1-bit weights and 8-bit inputs, then nine with both at one
# bit. Learning rate and decay are those of the float training. Averaged
# weights are off: the average would be of a float model. Weights do not decay,
# since only their signs and mean sizes count. A leaf adds QATHook.
_base_ = ['./faster-rcnn_r18-half_fpn_bccd.py']

load_from = 'configs/faster_rcnn/checkpoints/faster-rcnn_r18-half_fpn_bccd.pth'
optim_wrapper = dict(optimizer=dict(weight_decay=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        begin=0,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_epochs=12, val_interval=12)
custom_hooks = []
