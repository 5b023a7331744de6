# UPerNet Swin-T on Cityscapes, quantized to W4A8 with QDrop. mmseg has no
# such config: its UPerNet Swin-T model (19 classes as it comes) meets its
# Cityscapes data here.
_base_ = [
    __import__('mmseg').__path__[0]
    + '/.mim/configs/_base_/models/upernet_swin.py',
    __import__('mmseg').__path__[0]
    + '/.mim/configs/_base_/datasets/cityscapes.py',
    __import__('mmseg').__path__[0]
    + '/.mim/configs/_base_/default_runtime.py',
    __import__('mmseg').__path__[0]
    + '/.mim/configs/_base_/schedules/schedule_80k.py',
]

model = dict(data_preprocessor=dict(size=(512, 1024)))  # height, width

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe='w4a8_qdrop',
        calibration=dict(num_images=256),
    )
]
