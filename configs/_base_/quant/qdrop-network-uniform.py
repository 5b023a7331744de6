# As kl-fg.py, with the squared error of all heads and places alike: what its
# loss is compared with.
_base_ = ['./qdrop.py']
reconstruction = dict(
    steps=300,
    network_steps=100,
    # Hard roundings in the forward pass: soft ones fit, and break when made
    # hard. At 0.01 Adam turns none of them in 100 steps; 0.1 was worse than
    # 0.01 in a trial with LaneATT. This rate lies between and is untried.
    network=dict(straight_through=True, weight_lr=0.03, drop_prob=0.0),
    loss=dict(type='NetworkUniform'))
