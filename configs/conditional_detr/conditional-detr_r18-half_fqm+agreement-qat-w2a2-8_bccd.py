# Trained at 2-2-8 from the float checkpoint.
# LSQ+, query matching (FQM) and agreement with boxes and classes.
_base_ = [
    './conditional-detr_r18-half_qat_bccd.py',
    '../_base_/quant/w2a2-8_fqm+agreement-qat.py',
]

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        qconfig=_base_.qconfig,
        distillation=_base_.distillation,
        calibration=dict(num_images=128),
    )
]
