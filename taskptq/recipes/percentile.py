"""Ranges that clip the outermost values of tensors, rounding to nearest."""

base = 'minmax'
qconfig = dict(activation=dict(observer=dict(type='PercentileObserver')))
