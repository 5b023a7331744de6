# Full ranges: the smallest and the largest value of each tensor.
_base_ = ['./points.py']
qconfig = dict(
    weight=dict(observer=dict(type='MinMaxObserver')),
    activation=dict(observer=dict(type='MinMaxObserver')),
)
reconstruction = None
