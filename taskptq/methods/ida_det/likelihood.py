"""Gaussian likelihood of a student's features around its teacher's.

The 'entropy distillation loss' of IDa-Det, Xu et al., ECCV 2022, equation
6.88 of 'Binary Neural Networks', CRC Press, read as a negative
log-likelihood: as printed, its covariance may be negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskptq.methods.feature_losses.base import FeatureLoss, weighted_mean
from taskptq.registry import RECON_LOSSES

LIMIT = 10.0


def gaussian_nll(squared_error: Tensor, log_variance: Tensor) -> Tensor:
    """Return ``e^2 exp(-l) + l``, elementwise; may be negative.

    Args:
        squared_error: e^2 >= 0.
        log_variance: l, broadcasts; clamped to [-10, 10].

    >>> float(gaussian_nll(torch.tensor(0.25), torch.tensor(0.0)))
    0.25
    """
    log_variance = log_variance.clamp(-LIMIT, LIMIT)
    return squared_error * torch.exp(-log_variance) + log_variance


@RECON_LOSSES.register_module()
class GaussianLikelihoodLoss(FeatureLoss):
    """Negative log-likelihood with the variance of each channel.

    ``L = mean_c (E_w e_c^2 exp(-l_c) + l_c)`` at ``l_c = log E_w e_c^2``,
    which is its minimum over l: each channel's error counts relative to how
    large it is already. The minimum needs no parameter of its own, so
    nothing is added to the optimizer. The value is the mean logarithm of the
    errors plus 1, and may be negative.
    """

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        weights: Tensor | None = None,
        name: str = '',
    ) -> Tensor:
        """Return the loss of rows (P, C)."""
        error = weighted_mean((student - teacher).square(), weights)
        least = torch.finfo(error.dtype).tiny
        log_variance = error.detach().clamp(min=least).log()
        return gaussian_nll(error, log_variance).mean()
