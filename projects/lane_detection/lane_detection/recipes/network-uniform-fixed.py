"""network-uniform with 300 steps and fixed scales, from nearest rounding."""

base = 'network-uniform'
reconstruction = dict(
    steps=300,
    weight_lr=0.05,
    learn_scales=False,
    keep_better=True,
    channels_last=True,
)
