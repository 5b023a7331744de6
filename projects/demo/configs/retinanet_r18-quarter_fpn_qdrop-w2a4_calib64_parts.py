# A short run: 100 steps for each block instead of 400.
_base_ = ['./retinanet_r18-quarter_fpn_parts.py']

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe=['w2a4_qdrop', dict(reconstruction=dict(steps=100))],
        calibration=dict(num_images=64),
    )
]
