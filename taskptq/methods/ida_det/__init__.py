"""IDa-Det: distil where a 1-bit detector sees something else."""

from taskptq.methods.ida_det.discrepancy import (
    information_discrepancy,
    select_pairs,
    spatial_softmax,
)
from taskptq.methods.ida_det.likelihood import (
    GaussianLikelihoodLoss,
    gaussian_nll,
)

__all__ = [
    'GaussianLikelihoodLoss',
    'gaussian_nll',
    'information_discrepancy',
    'select_pairs',
    'spatial_softmax',
]
