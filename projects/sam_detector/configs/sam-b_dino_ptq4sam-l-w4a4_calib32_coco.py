_base_ = ['./sam-b_dino_coco.py']

custom_hooks = [
    dict(
        type='taskptq.PTQHook',
        recipe=[
            'w4a4_ptq4sam-l',
            dict(reconstruction=dict(steps=2000, batch_size=1)),
        ],
        calibration=dict(num_images=32),
    )
]
