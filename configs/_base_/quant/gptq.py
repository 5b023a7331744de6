# GPTQ (Frantar et al., ICLR 2023): closed-form rounding with second-order
# information of each layer's inputs; ranges of least error.
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
reconstruction = dict(rounding='gptq')
