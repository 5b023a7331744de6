# Trained with 1-bit weights and inputs.
# LSQ and RBONN's backtracking on weights.
_base_ = ['./faster-rcnn_r18-half_qat_bccd.py']

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe='w1a1_backtrack-qat',
        stages=[dict(recipe='w1a8_backtrack-qat', epochs=3), dict()],
        calibration=dict(num_images=32),
    )
]
