# Keys centered, values not. Statistics only: ranges of least error, rounding
# to nearest.
_base_ = ['./mse.py']
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'], values=False)]
