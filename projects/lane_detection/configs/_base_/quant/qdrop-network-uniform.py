# Blocks first, the network afterwards: qdrop.py, then the error of the named
# heads, all heads and places alike, from the roundings and scales that the
# blocks ended with.
_base_ = ['./qdrop.py']
reconstruction = dict(
    steps=300,
    network_steps=300,
    network=dict(straight_through=True, weight_lr=0.01, drop_prob=0.0),
    loss=dict(type='NetworkUniform'),
)
