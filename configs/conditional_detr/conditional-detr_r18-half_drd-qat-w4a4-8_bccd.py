# Trained at 4-4-8 from the float checkpoint.
# LSQ+, DA and FQM: distribution rectification distillation.
_base_ = [
    './conditional-detr_r18-half_qat_bccd.py',
    '../_base_/quant/w4a4-8_drd-qat.py',
]

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        qconfig=_base_.qconfig,
        distillation=_base_.distillation,
        calibration=dict(num_images=128),
    )
]
