# Trained with 1-bit weights and inputs. Without a teacher: what the others are
# compared with.
_base_ = ['./faster-rcnn_r18-half_qat_bccd.py']

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe='w1a1_lsq-qat',
        stages=[dict(recipe='w1a8_lsq-qat', epochs=3), dict()],
        calibration=dict(num_images=32),
    )
]
