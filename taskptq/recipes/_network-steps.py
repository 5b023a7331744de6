"""Steps on the whole network towards the float model's outputs.

All codes, scales and biases train with hard rounding, as in
quantization-aware training, but on the calibration images alone and without
labels.
"""

qconfig = dict(activation=dict(type='LSQQuantizer'))
reconstruction = dict(
    network_steps=300,
    network_batch_size=4,
    network_optional=True,
    vary_images=0.35,
    network=dict(
        latent_weights=True,
        weight_lr=0.01,
        scale_lr=5e-4,
        drop_prob=0.0,
        keep_better=True,
    ),
    loss=dict(type='OutputErrorLoss'),
)
