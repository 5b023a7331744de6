# Blocks first, the network afterwards: qdrop.py, then Selective Focus on the
# whole network, from the roundings and scales that the blocks ended with.
_base_ = ['./qdrop.py']
reconstruction = dict(
    steps=300,
    network_steps=300,
    # Hard roundings in the forward pass: soft ones fit, and break when they
    # are made hard.
    network=dict(straight_through=True, weight_lr=0.01, drop_prob=0.0),
    loss=dict(
        type='SelectiveFocusLoss',
        focus='soft',
        selection='threshold',
        rho=0.05,
        update_interval=20,
        refresh_interval=100))
