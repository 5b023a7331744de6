# Quantization-aware training with LSQ+ (Bhalgat et al., CVPRW 2020): scales
# of weights and activations train with the weights, zero points of
# activations too (those of weights stay as calibrated). Ranges begin where
# they err least on training images. For QATHook; `distillation` None is the
# model's own loss alone.
qconfig = dict(
    weight=dict(
        type='LSQQuantizer',
        num_bits=8,
        symmetric=False,
        per_channel=True,
        observer=dict(type='MSEObserver'),
    ),
    activation=dict(
        type='LSQQuantizer',
        num_bits=8,
        symmetric=False,
        learn_zero_point=True,
        observer=dict(type='MSEObserver'),
    ),
    edge_bits=8,
)
reconstruction = None
distillation = None
