"""Analytic clip (Banner et al., NeurIPS 2019), rounding to nearest.

Ranges of least error if the values were Laplacian or normal.
"""

base = 'mse'
qconfig = dict(
    weight=dict(observer=dict(type='ACIQObserver')),
    activation=dict(observer=dict(type='ACIQObserver')),
)
