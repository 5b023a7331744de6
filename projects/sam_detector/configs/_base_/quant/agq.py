# Adaptive granularity of PTQ4SAM (softmax on a power-of-two grid) alone.
# Learned on top of QDrop.
_base_ = ['./qdrop.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver'),
    )
)
