# Keys centered; each softmax on the grid of least error of the
# attention's output, power of two or uniform. Learned on top of QDrop.
_base_ = ['./qdrop.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver', taus=[0, 1, 2, 4]),
    )
)
# Values stay: rows on a power-of-two grid sum to nearly 1 as they are.
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'], values=False)]
