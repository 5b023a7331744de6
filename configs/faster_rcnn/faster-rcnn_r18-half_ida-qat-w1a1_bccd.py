# Trained with 1-bit weights and inputs. The features of the neck are distilled
# where both models differ most (IDa-Det).
_base_ = ['./faster-rcnn_r18-half_qat_bccd.py']

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe='w1a1_ida-qat',
        stages=[dict(recipe='w1a8_lsq-qat', epochs=3), dict()],
        calibration=dict(num_images=32),
    )
]
