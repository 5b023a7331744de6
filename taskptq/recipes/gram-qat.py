"""lsq-qat, with the similarities of tokens in attention distilled.

Normalized Gram matrices of queries and of keys are drawn to those of the
float model: the distillation of Q-ViT (Li et al., NeurIPS 2022). For QATHook
and models with attention.
"""

base = 'lsq-qat'
distillation = dict(views=[dict(taps='query_key', loss='gram', weight=1.0)])
