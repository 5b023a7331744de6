# Analytic clip (Banner et al., NeurIPS 2019), rounding to nearest.
_base_ = ['../../../../../configs/_base_/quant/aciq.py']
