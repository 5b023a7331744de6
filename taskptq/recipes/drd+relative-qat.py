"""As drd-qat, relative to the norm of the float model's features.

For models whose features are so long that their distance would drown the
detector's own loss.
"""

base = 'drd-qat'
distillation = dict(normalize=True)
