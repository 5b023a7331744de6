"""Keys and values centered at the mean of each channel (statistics only).

Ranges of least error, rounding to nearest.
"""

base = 'mse'
rewrites = [
    dict(type='AttentionCentering', patterns=['sam.*'], value_center='mean')
]
