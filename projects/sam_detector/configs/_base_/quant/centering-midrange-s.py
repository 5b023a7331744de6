# Keys and values centered at the middle between the extremes of each channel.
# Statistics only: ranges of least error, rounding to nearest.
_base_ = ['./mse.py']
rewrites = [
    dict(
        type='AttentionCentering',
        patterns=['sam.*'],
        key_center='midrange',
        value_center='midrange',
    )
]
