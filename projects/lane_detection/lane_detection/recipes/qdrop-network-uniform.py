"""Blocks first, then the network.

Like qdrop, then on the error of the named heads, with the same weight for all
heads and positions, from the blocks' final roundings and scales.
"""

base = 'qdrop'
reconstruction = dict(
    steps=300,
    network_steps=300,
    network=dict(straight_through=True, weight_lr=0.01, drop_prob=0.0),
    loss=dict(type='NetworkUniform'),
)
