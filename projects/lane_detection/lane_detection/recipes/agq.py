"""Softmax on a power-of-two grid (PTQ4SAM, CVPR 2024), rounding to nearest.

Ranges of least error.
"""

base = 'mse'
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver', per_head=True),
    )
)
