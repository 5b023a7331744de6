"""Keys and values centered at midrange (statistics only).

The middle of each channel's range. Ranges of least error, rounding to nearest.
"""

base = 'mse'
rewrites = [
    dict(
        type='AttentionCentering',
        patterns=['sam.*'],
        key_center='midrange',
        value_center='midrange',
    )
]
