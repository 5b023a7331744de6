"""lsq-qat, with the order of attention distilled.

The keys of each row of attention keep the order that they have in the float
model: the distillation of Bi-ViT (Li et al., AAAI 2024). For QATHook and
models with attention.
"""

base = 'lsq-qat'
distillation = dict(views=[dict(taps='attention', loss='ranking', weight=1.0)])
