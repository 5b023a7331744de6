# Trained at 4-4-8 from the float checkpoint.
# LSQ+ and aligned queries (DA).
_base_ = [
    './conditional-detr_r18-half_qat_bccd.py',
    '../_base_/quant/w4a4-8_da-qat.py',
]

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        qconfig=_base_.qconfig,
        distillation=_base_.distillation,
        calibration=dict(num_images=128),
    )
]
