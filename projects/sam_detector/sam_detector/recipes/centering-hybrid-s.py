"""Keys centered; each softmax on the grid of least error (statistics only).

The error is that of the attention's output; a grid is power of two or uniform.
Ranges of least error, rounding to nearest.
"""

base = ['mse', '_hybrid', '_centered-keys']
