# QDrop (Wei et al., ICLR 2022): rounding and activation scales learned block
# by block, half of the activations left float at random meanwhile. Frozen and
# evaluated without any drop.
_base_ = ['./points.py']
qconfig = dict(activation=dict(type='LSQQuantizer'))
reconstruction = dict(
    rounding='adaround',
    scope='block',
    steps=400,
    batch_size=8,
    weight_lr=0.25,
    scale_lr=5e-3,
    learn_scales=True,
    drop_prob=0.5,
)
