# Full ranges: the smallest and the largest value of each tensor.
qconfig = dict(
    weight=dict(
        type='AffineQuantizer',
        num_bits=8,
        symmetric=True,
        per_channel=True,
        observer=dict(type='MinMaxObserver'),
    ),
    activation=dict(
        type='AffineQuantizer',
        num_bits=8,
        symmetric=False,
        observer=dict(type='MinMaxObserver'),
    ),
    edge_bits=8,
)
reconstruction = None
