"""Quantization-aware training with LSQ+ (Bhalgat et al., CVPRW 2020).

Scales of weights and activations train with the weights, and so do zero
points of activations; those of weights stay as calibrated. Ranges begin where
they err least on training images. The loss is the model's own. For QATHook.
"""

base = 'mse'
qconfig = dict(
    weight=dict(type='LSQQuantizer', symmetric=False),
    activation=dict(type='LSQQuantizer', learn_zero_point=True),
)
distillation = None
