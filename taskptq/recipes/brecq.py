"""BRECQ (Li et al., ICLR 2021), without drop.

Rounding and activation scales are learned block by block.
"""

base = 'adaround'
qconfig = dict(activation=dict(type='LSQQuantizer'))
reconstruction = dict(scope='block', scale_lr=5e-3, learn_scales=True)
