"""size, then steps on the whole network towards the float model.

Codes move freely, at a price of bits that keeps the coded file as small as
asked for; scales of weights and biases train as well.
"""

base = 'size'
reconstruction = dict(
    network_steps=150,
    network_batch_size=4,
    network_optional=True,
    vary_images=0.35,
    network=dict(
        latent_weights=True,
        learn_scales=False,
        weight_lr=0.02,
        scale_lr=5e-4,
        drop_prob=0.0,
        keep_better=True,
    ),
    loss=dict(type='OutputErrorLoss'),
)
