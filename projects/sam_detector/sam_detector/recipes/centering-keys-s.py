"""Keys centered, values not (statistics only).

Ranges of least error, rounding to nearest.
"""

base = ['mse', '_centered-keys']
