# Localization-aware reconstruction: qdrop.py, then the whole network on the KL
# divergence of box distributions where the float model sees objects. For
# models with grid heads.
_base_ = ['./qdrop.py']
reconstruction = dict(
    steps=300,
    network_steps=100,
    loss=dict(type='ForegroundKLLoss'))
