# Keys centered; softmax on a power-of-two grid. Learned on top of
# QDrop.
_base_ = ['./qdrop.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver'),
    )
)
# Values stay: rows on a power-of-two grid sum to nearly 1 as they are.
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'], values=False)]
