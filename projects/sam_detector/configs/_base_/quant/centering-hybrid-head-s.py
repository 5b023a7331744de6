# Keys centered; each softmax head on the grid of least error of the
# attention's output, power of two or uniform. Statistics only: ranges of
# least error, rounding to nearest.
_base_ = ['./mse.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(
            type='AttentionOutputObserver', taus=[0, 1, 2, 4], per_head=True
        ),
    )
)
# Values stay: rows on a power-of-two grid sum to nearly 1 as they are.
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'], values=False)]
