# Channels equalized between layers (Nagel et al., ICCV 2019). Ranges of least
# error, rounding to nearest.
_base_ = ['./mse.py']
rewrites = [dict(type='CrossLayerEqualization')]
