# Values centered, keys not. Statistics only: ranges of least error, rounding
# to nearest.
_base_ = ['./mse.py']
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'], keys=False)]
