# AdaRound (Nagel et al., ICML 2020): learned rounding, layer by layer.
_base_ = ['../../../../../configs/_base_/quant/adaround.py']
