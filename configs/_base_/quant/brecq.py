# BRECQ (Li et al., ICLR 2021): learned rounding and activation scales, block
# by block, without drop.
qconfig = dict(
    weight=dict(
        type='AffineQuantizer',
        num_bits=8,
        symmetric=False,
        per_channel=True,
        observer=dict(type='MSEObserver'),
    ),
    activation=dict(
        type='LSQQuantizer',
        num_bits=8,
        symmetric=False,
        observer=dict(type='MSEObserver'),
    ),
    edge_bits=8,
)
reconstruction = dict(
    rounding='adaround',
    scope='block',
    steps=400,
    batch_size=8,
    weight_lr=0.25,
    scale_lr=5e-3,
    learn_scales=True,
    drop_prob=0.0,
)
