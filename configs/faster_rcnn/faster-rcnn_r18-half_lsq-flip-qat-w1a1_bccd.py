# Trained with 1-bit weights and inputs; ReBNN's pull keeps signs from flipping
# back and forth.
_base_ = ['./faster-rcnn_r18-half_qat_bccd.py']

pull = dict(qconfig=dict(weight=dict(pull='flip')))

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe=['w1a1_lsq-qat', pull],
        stages=[dict(recipe=['w1a8_lsq-qat', pull], epochs=3), dict()],
        calibration=dict(num_images=32),
    )
]
