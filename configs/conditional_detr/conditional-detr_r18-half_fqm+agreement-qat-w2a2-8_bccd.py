# Trained at 2-2-8 from the float checkpoint.
# LSQ+, query matching (FQM) and agreement with boxes and classes.
_base_ = ['./conditional-detr_r18-half_qat_bccd.py']

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe='w2a2-8_fqm+agreement-qat',
        calibration=dict(num_images=128),
    )
]
