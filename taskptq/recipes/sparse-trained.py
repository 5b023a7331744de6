"""sparse, then steps on each block: weights, on a grid codes, and biases.

A block whose loss training did not lower keeps what was solved.
"""

base = 'sparse'
reconstruction = dict(
    rounding='adaround',
    start='gptq',
    latent_weights=True,
    learn_scales=False,
    drop_prob=0.0,
    steps=200,
    batch_size=4,
    weight_lr=0.05,
    scale_lr=1e-3,
    skip_below=0.0,
)
