"""Values centered, keys not (statistics only).

Ranges of least error, rounding to nearest.
"""

base = 'mse'
rewrites = [dict(type='AttentionCentering', patterns=['sam.*'], keys=False)]
