# AdaRound (Nagel et al., ICML 2020): learned rounding, layer by layer;
# activation ranges stay those of least error.
qconfig = dict(
    weight=dict(
        type='AffineQuantizer',
        num_bits=8,
        symmetric=False,
        per_channel=True,
        observer=dict(type='MSEObserver'),
    ),
    activation=dict(
        type='AffineQuantizer',
        num_bits=8,
        symmetric=False,
        observer=dict(type='MSEObserver'),
    ),
    edge_bits=8,
)
reconstruction = dict(
    rounding='adaround',
    scope='layer',
    steps=400,
    batch_size=8,
    weight_lr=0.25,
    learn_scales=False,
    drop_prob=0.0,
)
