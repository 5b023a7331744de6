"""Keys and values centered between the extremes of each channel.

Statistics only: ranges of least error, rounding to nearest.
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
