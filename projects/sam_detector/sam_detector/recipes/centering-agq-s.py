"""Keys centered; softmax on a power-of-two grid.

Statistics only: ranges of least error, rounding to nearest.
"""

base = ['mse', '_agq', '_centered-keys']
