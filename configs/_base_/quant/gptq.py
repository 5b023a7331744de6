# GPTQ (Frantar et al., ICLR 2023): closed-form rounding with second-order
# information of each layer's inputs; ranges of least error.
_base_ = ['./mse.py']
qconfig = dict(weight=dict(symmetric=False))
reconstruction = dict(rounding='gptq')
