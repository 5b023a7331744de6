# The recipe of qdrop.py on the whole network at once: the error of the named
# heads, all heads and places alike. A minibatch is one calibration batch.
_base_ = ['./qdrop.py']
reconstruction = dict(
    scope='network',
    steps=400,
    # Hard roundings in the forward pass: soft ones fit, and a quarter of them
    # is undecided at the end and breaks what was fitted.
    straight_through=True,
    weight_lr=0.03,
    drop_prob=0.0,
    skip_below=0.0,
    loss=dict(type='NetworkUniform'),
)
