# As kl-fg.py, with the squared error of all heads and places alike: what its
# loss is compared with.
_base_ = ['./qdrop.py']
reconstruction = dict(
    steps=300,
    network_steps=100,
    loss=dict(type='NetworkUniform'))
