# What the quantization-aware trainings of this folder share: a short schedule
# from the float checkpoint. Averaged weights are off: the average would be of
# a float model. A leaf adds QATHook and its recipe.
_base_ = ['./segformer_mit-tiny_camvid.py']

load_from = 'configs/segformer/checkpoints/segformer_mit-tiny_camvid.pth'
optim_wrapper = dict(optimizer=dict(lr=2e-4))
train_dataloader = dict(num_workers=0, persistent_workers=False)
train_cfg = dict(max_epochs=3, val_interval=3)
custom_hooks = []
