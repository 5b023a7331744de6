# As centering-agq, with a granularity for each head. Statistics only: ranges
# of least error, rounding to nearest.
_base_ = ['./mse.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver', per_head=True),
    )
)
# Values stay: rows on a power-of-two grid sum to nearly 1 as they are.
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'], values=False)]
