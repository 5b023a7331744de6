# fqm-qat.py, relative to the features of the float model, and agreement with
# its boxes and classes in every decoder layer (ours; not in Q-DETR).
_base_ = ['./fqm-qat.py']
distillation = dict(
    normalize=True, layers='all', box_weight=1.0, class_weight=1.0
)
