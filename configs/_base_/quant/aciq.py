# Analytic clip (Banner et al., NeurIPS 2019): ranges of least error if the
# values were Laplacian or normal, rounding to nearest.
qconfig = dict(
    weight=dict(
        type='AffineQuantizer',
        num_bits=8,
        symmetric=True,
        per_channel=True,
        observer=dict(type='ACIQObserver'),
    ),
    activation=dict(
        type='AffineQuantizer',
        num_bits=8,
        symmetric=False,
        observer=dict(type='ACIQObserver'),
    ),
    edge_bits=8,
)
reconstruction = None
