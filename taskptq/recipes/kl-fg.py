"""Localization-aware reconstruction, for models with grid heads.

Blocks as in qdrop, then the whole network on the KL divergence of box
distributions where the float model sees objects.
"""

base = 'qdrop'
reconstruction = dict(
    steps=300,
    network_steps=300,
    network=dict(
        # Hard roundings in the forward pass: soft ones fit, and break when
        # made hard. Those that turn first do harm; 300 steps are enough for
        # more to be gained than lost, 100 were often not.
        straight_through=True,
        weight_lr=0.05,
        # Where a picture has an even background, many of a layer's inputs
        # change their code together when its scale moves by a few parts in a
        # thousand, and no gradient tells.
        learn_scales=False,
        drop_prob=0.0,
        keep_better=True,
    ),
    loss=dict(type='ForegroundKLLoss'),
)
