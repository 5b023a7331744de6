# Trained with 1-bit weights and inputs.
# LSQ, ReBNN's pull by flips on weights, and hints of the neck.
_base_ = ['./faster-rcnn_r18-half_qat_bccd.py']

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe='w1a1_hint+flip-qat',
        stages=[dict(recipe='w1a8_hint+flip-qat', epochs=3), dict()],
        calibration=dict(num_images=32),
    )
]
