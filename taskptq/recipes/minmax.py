"""Full ranges: the smallest and the largest value of each tensor."""

base = 'mse'
qconfig = dict(
    weight=dict(observer=dict(type='MinMaxObserver')),
    activation=dict(observer=dict(type='MinMaxObserver')),
)
