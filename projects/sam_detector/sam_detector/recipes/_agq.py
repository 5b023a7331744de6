"""Adaptive granularity of PTQ4SAM: softmax on a power-of-two grid."""

qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver'),
    )
)
