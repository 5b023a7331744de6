"""Ours, statistics only: ranges of least error, rounding to nearest.

Channels equalized between layers, each softmax head on the grid of least
error, and the few layers that regress curves at 8 bits or more.
"""

base = ['mse', '_ours-ground']
