# Keys and values centered at the mean of each channel, whatever is attended
# to. Statistics only: ranges of least error, rounding to nearest.
_base_ = ['./mse.py']
rewrites = [
    dict(type='AttentionCentering', patterns=['sam.*'], value_center='mean')
]
