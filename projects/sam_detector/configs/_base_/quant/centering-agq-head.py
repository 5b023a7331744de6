# As centering-agq, with a granularity for each head. Learned on top of QDrop.
_base_ = ['./qdrop.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver', per_head=True),
    )
)
# Values stay: rows on a power-of-two grid sum to nearly 1 as they are.
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'], values=False)]
