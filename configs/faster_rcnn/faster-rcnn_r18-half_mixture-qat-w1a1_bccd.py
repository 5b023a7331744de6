# Trained with 1-bit weights and inputs.
# LSQ and POEM's mixture on weights.
_base_ = ['./faster-rcnn_r18-half_qat_bccd.py']

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe='w1a1_mixture-qat',
        stages=[dict(recipe='w1a8_mixture-qat', epochs=3), dict()],
        calibration=dict(num_images=32),
    )
]
