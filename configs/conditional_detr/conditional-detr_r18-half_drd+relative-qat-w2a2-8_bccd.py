# Trained at 2-2-8 from the float checkpoint.
# LSQ+, DA and FQM (DRD), its distance relative to the features.
_base_ = ['./conditional-detr_r18-half_qat_bccd.py']

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe='w2a2-8_drd+relative-qat',
        calibration=dict(num_images=128),
    )
]
