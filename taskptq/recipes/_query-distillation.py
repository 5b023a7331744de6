"""Query distillation with the settings of Q-DETR, in training.

The co-attended features of queries near a ground truth are drawn to those of
their partners in the float model.
"""

distillation = dict(weight=2.5, tau=0.6, mu1=2.0, mu2=5.0)
