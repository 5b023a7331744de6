# AdaRound (Nagel et al., ICML 2020): learned rounding, layer by layer;
# activation ranges stay those of least error.
_base_ = ['./points.py']
reconstruction = dict(
    rounding='adaround',
    scope='layer',
    steps=400,
    batch_size=8,
    weight_lr=0.25,
    learn_scales=False,
    drop_prob=0.0,
)
