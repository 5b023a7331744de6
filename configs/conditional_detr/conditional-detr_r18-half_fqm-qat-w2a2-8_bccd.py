# Trained at 2-2-8 from the float checkpoint.
# LSQ+ and distillation of matched queries (FQM).
_base_ = [
    './conditional-detr_r18-half_qat_bccd.py',
    '../_base_/quant/w2a2-8_fqm-qat.py',
]

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        qconfig=_base_.qconfig,
        distillation=_base_.distillation,
        calibration=dict(num_images=128),
    )
]
