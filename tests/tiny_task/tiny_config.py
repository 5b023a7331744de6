custom_imports = dict(imports=['tiny_task'], allow_failed_imports=False)
default_scope = 'mmengine'
model = dict(type='TinyNet')

_pipeline = [
    dict(type='TinyLoad'),
    dict(type='TinyLoadAnnotations'),
    dict(type='TinyPack'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(
            type='TinyDataset',
            first=100,
            length=24,
            pipeline=[dict(type='TinyNoise')],
        ),
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='TinyDataset',
        first=200,
        length=8,
        test_mode=True,
        pipeline=_pipeline,
    ),
)
test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='TinyDataset', length=8, test_mode=True, pipeline=_pipeline
    ),
)
val_evaluator = dict(type='TinyMetric')
test_evaluator = dict(type='TinyMetric')
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
val_cfg = dict()
test_cfg = dict()
custom_hooks = [dict(type='EMAHook')]
default_hooks = dict(logger=None, checkpoint=None)
log_level = 'WARNING'
