# The recipe of qdrop.py on the whole network at once: the error of the named
# heads, all heads and places alike. A minibatch is one calibration batch.
_base_ = ['./qdrop.py']
reconstruction = dict(
    scope='network',
    steps=400,
    # The roundings of all layers are pulled together, by one loss that is
    # far smaller than the sum of the blocks' own.
    rounding_weight=10.0,
    skip_below=0.0,
    loss=dict(type='NetworkUniform'))
