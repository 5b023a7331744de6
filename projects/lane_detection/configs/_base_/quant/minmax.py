# Full ranges: the smallest and the largest value of each tensor.
_base_ = ['../../../../../configs/_base_/quant/minmax.py']
