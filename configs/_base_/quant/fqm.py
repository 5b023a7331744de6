# Foreground-aware query matching (FQM of Q-DETR): blocks as in qdrop.py, then
# decoder and head together, on the co-attended features of foreground queries
# and of their partners in the float model. Foreground is what the float model
# is confident of: no labels are read.
_base_ = ['./qdrop.py']
reconstruction = dict(
    network_steps=150,
    network_train=['decoder.*', 'bbox_head.*'],
    # Hard roundings in the forward pass: soft ones fit, and break when made
    # hard. Adam must be able to turn one within the steps: at a tenth of this
    # rate none is, and only scales learn.
    network=dict(straight_through=True, weight_lr=0.1, drop_prob=0.0),
    # The decoder layers alike. The teacher is the float model, so boxes and
    # classes have a target of their own beside that of the features.
    loss=dict(
        type='QueryDistillationLoss',
        tau=0.6,
        mu1=2.0,
        mu2=5.0,
        layers='all',
        agreement='own',
    ),
)
