"""Steps on the whole network as in kl-fg of taskptq, which helped there.

Scales stay fixed: where a picture has an even background, many inputs of a
layer change their code together when its scale moves by a few parts in a
thousand. Fewer steps often did harm, and where these do, they are taken back.
"""

reconstruction = dict(
    network_steps=300,
    network=dict(
        weight_lr=0.05,
        learn_scales=False,
        keep_better=True,
        channels_last=True,
    ),
)
