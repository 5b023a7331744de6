# Ranges of least error, rounding to nearest (OMSE).
_base_ = ['../../../../../configs/_base_/quant/mse.py']
