# As kl-fg.py, with the squared error of all heads and places alike: what its
# loss is compared with.
_base_ = ['./kl-fg.py']
reconstruction = dict(loss=dict(type='NetworkUniform'))
