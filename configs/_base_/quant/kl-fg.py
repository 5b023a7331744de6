# Localization-aware reconstruction: qdrop.py, then the whole network on the KL
# divergence of box distributions where the float model sees objects. For
# models with grid heads.
_base_ = ['./qdrop.py']
reconstruction = dict(
    steps=300,
    network_steps=100,
    # Hard roundings in the forward pass: soft ones fit, and break when made
    # hard. At 0.01 Adam turns none of them in 100 steps; 0.1 was worse than
    # 0.01 in a trial with LaneATT. This rate lies between.
    network=dict(straight_through=True, weight_lr=0.03, drop_prob=0.0),
    loss=dict(type='ForegroundKLLoss'))
