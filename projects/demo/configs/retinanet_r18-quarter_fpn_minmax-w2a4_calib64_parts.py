_base_ = [
    './retinanet_r18-quarter_fpn_parts.py',
    '../../../configs/_base_/quant/w2a4_minmax.py',
]

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        qconfig=_base_.qconfig,
        calibration=dict(num_images=64),
    )
]
