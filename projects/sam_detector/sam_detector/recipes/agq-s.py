"""Adaptive granularity of PTQ4SAM alone (statistics only).

Ranges of least error, rounding to nearest.
"""

base = ['mse', '_agq']
