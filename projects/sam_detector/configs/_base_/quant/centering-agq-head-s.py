# As centering-agq, with a granularity for each head. Statistics only: ranges
# of least error, rounding to nearest.
_base_ = ['./mse.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver', per_head=True)))
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'])]
