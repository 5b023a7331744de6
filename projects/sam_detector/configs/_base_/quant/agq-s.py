# Adaptive granularity of PTQ4SAM (softmax on a power-of-two grid) alone.
# Statistics only: ranges of least error, rounding to nearest.
_base_ = ['./mse.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver'),
    )
)
