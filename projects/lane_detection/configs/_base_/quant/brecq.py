# BRECQ (Li et al., ICLR 2021): rounding and activation scales learned block
# by block, without drop.
_base_ = ['../../../../../configs/_base_/quant/brecq.py']
