# Trained at 2 bits from the float checkpoint.
# LSQ+ alone.
_base_ = ['./segformer_mit-tiny_qat_camvid.py']

custom_hooks = [
    dict(
        type='taskptq.QATHook',
        recipe='w2a2_lsq-qat',
        calibration=dict(num_images=32),
    )
]
