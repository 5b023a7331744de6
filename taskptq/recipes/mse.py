"""Ranges of least error, rounding to nearest."""

qconfig = dict(
    weight=dict(
        type='AffineQuantizer',
        num_bits=8,
        symmetric=True,
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
reconstruction = None
