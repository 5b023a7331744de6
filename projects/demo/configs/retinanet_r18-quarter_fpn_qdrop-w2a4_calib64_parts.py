# A short run: 150 steps for each block instead of 400.
_base_ = [
    './retinanet_r18-quarter_fpn_parts.py',
    '../../../configs/_base_/quant/w2a4_qdrop.py',
]

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        qconfig=_base_.qconfig,
        reconstruction=dict(_base_.reconstruction, steps=150),
        calibration=dict(num_images=64),
    )
]
