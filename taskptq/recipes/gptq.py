"""GPTQ (Frantar et al., ICLR 2023), on ranges of least error.

Closed-form rounding with second-order information of each layer's inputs.
"""

base = 'mse'
qconfig = dict(weight=dict(symmetric=False))
reconstruction = dict(rounding='gptq')
