"""Ours, statistics only: ranges of least error, rounding to nearest.

Channels equalized between layers, each head of a softmax on the grid of least
error, and the few layers that regress curves at no less than 8 bits.
"""

base = ['mse', '_ours-ground']
