# drd-qat.py with the distance relative to the float model's features, for
# models whose features are so long that it would drown the detector's loss.
_base_ = ['./drd-qat.py']
distillation = dict(normalize=True)
