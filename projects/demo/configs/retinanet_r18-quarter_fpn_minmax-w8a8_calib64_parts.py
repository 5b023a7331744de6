_base_ = ['./retinanet_r18-quarter_fpn_parts.py']

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe='w8a8_minmax',
        calibration=dict(num_images=64),
    )
]
