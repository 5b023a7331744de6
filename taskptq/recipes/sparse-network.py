"""sparse, then steps on the whole network towards the float model.

The remaining weights, on a grid their codes and scales, and biases train on
the calibration images without labels, as in gptq-network.
"""

base = 'sparse'
reconstruction = dict(
    network_steps=200,
    network_batch_size=4,
    network_optional=True,
    vary_images=0.35,
    network=dict(
        latent_weights=True,
        learn_scales=False,
        weight_lr=0.05,
        scale_lr=5e-4,
        drop_prob=0.0,
        keep_better=True,
    ),
    loss=dict(type='OutputErrorLoss'),
)
