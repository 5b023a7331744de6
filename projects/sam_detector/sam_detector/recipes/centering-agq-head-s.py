"""As centering-agq, with a granularity for each head (statistics only).

Ranges of least error, rounding to nearest.
"""

base = ['mse', '_agq', '_head', '_centered-keys']
