# What the quantization-aware trainings of this folder share: one epoch from
# the float checkpoint. Averaged weights are off: the average would be of a
# float model. A leaf adds QATHook and its recipe.
_base_ = ['./segformer_mit-tiny_camvid.py']

load_from = 'configs/segformer/checkpoints/segformer_mit-tiny_camvid.pth'
optim_wrapper = dict(optimizer=dict(lr=3e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=10),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        begin=0,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_epochs=1, val_interval=1)
custom_hooks = []
