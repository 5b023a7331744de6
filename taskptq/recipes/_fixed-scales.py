"""More steps on the network, scales fixed, kept where they lower the loss.

As in kl-fg, whose comments give the reasons.
"""

reconstruction = dict(
    network_steps=300,
    network=dict(weight_lr=0.05, learn_scales=False, keep_better=True),
)
