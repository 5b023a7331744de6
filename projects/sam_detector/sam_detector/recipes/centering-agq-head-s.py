"""As centering-agq, with a granularity for each head.

Statistics only: ranges of least error, rounding to nearest.
"""

base = ['mse', '_agq', '_head', '_centered-keys']
