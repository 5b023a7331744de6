# Keys and values centered; softmax on a power-of-two grid. Statistics only:
# ranges of least error, rounding to nearest.
_base_ = ['./mse.py']
qconfig = dict(
    softmax=dict(
        type='PowerOfTwoQuantizer',
        observer=dict(type='AttentionOutputObserver')))
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'])]
