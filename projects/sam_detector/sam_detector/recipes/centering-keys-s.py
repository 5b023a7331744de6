"""Keys centered, values not.

Statistics only: ranges of least error, rounding to nearest.
"""

base = ['mse', '_centered-keys']
