# Trained at 4-4-8 from the float checkpoint.
# LSQ+, DA and FQM: distribution rectification distillation.
_base_ = ['./conditional-detr_r18-half_qat_bccd.py']

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe='w4a4-8_drd-qat',
        calibration=dict(num_images=128),
    )
]
