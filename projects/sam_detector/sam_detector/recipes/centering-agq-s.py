"""Keys centered; softmax on a power-of-two grid (statistics only).

Ranges of least error, rounding to nearest.
"""

base = ['mse', '_agq', '_centered-keys']
