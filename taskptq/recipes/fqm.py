"""Foreground-aware query matching of Q-DETR (Xu et al., CVPR 2023).

Blocks as in qdrop, then decoder and head together, on the co-attended
features of foreground queries and of their partners in the float model.
Foreground is what the float model is confident of: no labels are read.
"""

base = 'qdrop'
reconstruction = dict(
    network_steps=150,
    network_train=['decoder.*', 'bbox_head.*'],
    # Hard roundings in the forward pass: soft ones fit, and break when made
    # hard. Adam must be able to turn one within the steps: at a tenth of this
    # rate none is, and only scales learn.
    network=dict(straight_through=True, weight_lr=0.1, drop_prob=0.0),
    # All decoder layers. The teacher is the float model, so boxes and classes
    # have targets of their own, besides that of the features.
    loss=dict(
        type='QueryDistillationLoss',
        tau=0.6,
        mu1=2.0,
        mu2=5.0,
        layers='all',
        agreement='own',
    ),
)
