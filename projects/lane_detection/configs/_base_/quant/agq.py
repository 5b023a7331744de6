# Softmax on a power-of-two grid (PTQ4SAM, CVPR 2024). Ranges of least error,
# rounding to nearest.
_base_ = ['./mse.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver', per_head=True),
    )
)
