"""GPTQ's rounding, then steps on the decoder alone, for LSTR.

On the squared error of each query's logits, curve, rows and attended features,
in all decoder layers: what da, fqm and drd of this project are compared with
at equal steps. The part before the decoder runs once, so that the steps cost
seconds.
"""

base = 'gptq'
reconstruction = dict(
    network_steps=300,
    network_train=[
        'head.decoder.*',
        'head.class_embed',
        'head.reg_branches.*',
    ],
    # As kl-fg of taskptq, whose comments give the reasons.
    network=dict(
        straight_through=True,
        weight_lr=0.05,
        learn_scales=False,
        drop_prob=0.0,
        keep_better=True,
    ),
    loss=dict(type='NetworkUniform', by_query=True),
)
