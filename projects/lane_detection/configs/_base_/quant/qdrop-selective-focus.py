# Blocks first, the network afterwards: qdrop.py, then Selective Focus on the
# whole network, from the roundings and scales that the blocks ended with.
_base_ = ['./qdrop.py']
reconstruction = dict(
    steps=300,
    network_steps=100,
    loss=dict(
        type='SelectiveFocusLoss',
        focus='soft',
        selection='threshold',
        rho=0.05,
        update_interval=10,
        refresh_interval=50))
