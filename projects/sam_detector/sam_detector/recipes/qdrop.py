"""QDrop (Wei et al., ICLR 2022).

Rounding and activation scales are learned block by block, half of the
activations left float at random meanwhile. Frozen and evaluated without drop.
"""

base = 'adaround'
qconfig = dict(activation=dict(type='LSQQuantizer'))
reconstruction = dict(
    scope='block', scale_lr=5e-3, learn_scales=True, drop_prob=0.5
)
