# What the quantization-aware trainings of this folder share: a short schedule
# from the float checkpoint. Averaged weights are off: the average would be of
# a float model. A leaf adds QATHook and its recipe.
_base_ = ['./conditional-detr_r18-half_bccd.py']

load_from = (
    'configs/conditional_detr/checkpoints/conditional-detr_r18-half_bccd.pth'
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
train_cfg = dict(max_epochs=14, val_interval=14)
custom_hooks = []
