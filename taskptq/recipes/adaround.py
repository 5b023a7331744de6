"""AdaRound (Nagel et al., ICML 2020): rounding learned layer by layer.

Activation ranges stay those of least error.
"""

base = 'mse'
qconfig = dict(weight=dict(symmetric=False))
reconstruction = dict(
    rounding='adaround',
    scope='layer',
    steps=400,
    batch_size=8,
    weight_lr=0.25,
    learn_scales=False,
    drop_prob=0.0,
)
