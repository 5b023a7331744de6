"""Values centered, keys not.

Statistics only: ranges of least error, rounding to nearest.
"""

base = 'mse'
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'], keys=False)]
