# A short run: 250 steps for each block instead of 400.
_base_ = [
    './retinanet_r18-quarter_fpn_parts.py',
    '../../../configs/_base_/quant/w3a3_qdrop.py',
]

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        qconfig=_base_.qconfig,
        reconstruction=dict(_base_.reconstruction, steps=250),
        calibration=dict(num_images=64))
]
