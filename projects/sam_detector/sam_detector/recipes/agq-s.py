"""Adaptive granularity of PTQ4SAM alone.

Statistics only: ranges of least error, rounding to nearest.
"""

base = ['mse', '_agq']
