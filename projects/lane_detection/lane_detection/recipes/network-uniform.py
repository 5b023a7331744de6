"""QDrop's recipe on the whole network at once.

It minimizes the error of the named heads with the same weight for all heads
and positions. A minibatch is one calibration batch.
"""

base = 'qdrop'
reconstruction = dict(
    scope='network',
    steps=400,
    # Hard roundings in the forward pass: soft ones fit the loss, but a quarter
    # of them is undecided at the end, and rounding them undoes the fit.
    straight_through=True,
    weight_lr=0.03,
    drop_prob=0.0,
    skip_below=0.0,
    loss=dict(type='NetworkUniform'),
)
