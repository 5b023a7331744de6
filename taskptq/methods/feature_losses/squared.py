"""Squared error and distance of features."""

from __future__ import annotations

import torch
from torch import Tensor

from taskptq.core.settings import Flag
from taskptq.methods.feature_losses.base import FeatureLoss, weighted_mean
from taskptq.registry import RECON_LOSSES


@RECON_LOSSES.register_module()
class SquaredFeatureLoss(FeatureLoss):
    """Mean squared error of the chosen rows (FitNets, hint learning).

    ``L = E_w |s - t|^2 / E_w |t|^2``, Romero et al., ICLR 2015, relative to
    the power of the float model's features, so that one weight fits every
    layer.

    Args:
        normalize: Divide by the power; without it the mean over rows and
            channels stands alone.
    """

    def __init__(self, *, normalize: bool = True) -> None:
        self.normalize = Flag().read(normalize, name='normalize')

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        weights: Tensor | None = None,
        name: str = '',
    ) -> Tensor:
        """Return the loss of rows (P, C)."""
        error = weighted_mean((student - teacher).square(), weights).mean()
        if not self.normalize:
            return error
        power = weighted_mean(teacher.square(), weights).mean()
        return error / power.clamp(min=1e-12)


@RECON_LOSSES.register_module()
class FeatureDistanceLoss(FeatureLoss):
    """Mean Euclidean distance of the chosen rows, not squared.

    ``L = E_w |s - t|_2``: the distance of Q-DETR, Xu et al., CVPR 2023,
    equation 13.

    Args:
        normalize: Divide by the root mean square norm of the float model's
            rows.
    """

    def __init__(self, *, normalize: bool = False) -> None:
        self.normalize = Flag().read(normalize, name='normalize')

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        weights: Tensor | None = None,
        name: str = '',
    ) -> Tensor:
        """Return the loss of rows (P, C)."""
        # The gradient of this norm is 0, not undefined, for equal rows.
        apart = torch.linalg.vector_norm(student - teacher, dim=-1)
        distance = weighted_mean(apart, weights)
        if not self.normalize:
            return distance
        power = weighted_mean(teacher.square().sum(dim=-1), weights)
        return distance / power.sqrt().clamp(min=1e-12)
