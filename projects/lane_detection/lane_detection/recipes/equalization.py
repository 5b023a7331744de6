"""Channels equalized between layers (Nagel et al., ICCV 2019).

Ranges of least error, rounding to nearest.
"""

base = 'mse'
rewrites = [dict(type='CrossLayerEqualization')]
