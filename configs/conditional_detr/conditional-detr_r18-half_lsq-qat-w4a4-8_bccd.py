# Trained at 4-4-8 from the float checkpoint.
# LSQ+ alone: what the others are compared with.
_base_ = ['./conditional-detr_r18-half_qat_bccd.py']

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe='w4a4-8_lsq-qat',
        calibration=dict(num_images=128),
    )
]
