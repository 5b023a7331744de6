# AdamW with one step down at nine tenths. A leaf chooses its length, and the
# epoch of the step with it.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1),
)
param_scheduler = [
    dict(type='MultiStepLR', by_epoch=True, milestones=[1800], gamma=0.1)
]

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2000, val_interval=100)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
