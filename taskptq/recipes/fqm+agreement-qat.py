"""As fqm-qat, relative to features, and agreement with the float model.

Its boxes and classes count in every decoder layer (ours; not in Q-DETR).
"""

base = 'fqm-qat'
distillation = dict(
    normalize=True, layers='all', box_weight=1.0, class_weight=1.0
)
