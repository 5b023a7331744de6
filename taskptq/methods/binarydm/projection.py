"""Low-rank representation mimicking of BinaryDM.

Zheng et al., ICLR 2025 (arXiv 2404.05662): the student imitates features
after a projection on the leading principal directions of the float model's.
Directions are of channels, over all positions and images seen.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskptq.core.settings import Number
from taskptq.methods.feature_losses.base import FeatureLoss, weighted_mean
from taskptq.registry import RECON_LOSSES

LEAST_RANK = 2


def principal_directions(second_moment: Tensor, *, rank: int) -> Tensor:
    """Return the leading eigenvectors of a moment matrix, orthonormal.

    Args:
        second_moment: Symmetric, (C, C): sum of x x^T over rows.
        rank: Number of directions, at most C.

    Returns:
        (C, rank), the largest first; the largest entry of each is positive,
        so that equal matrices give equal directions.
    """
    _, vectors = torch.linalg.eigh(second_moment)
    leading = vectors.flip(-1)[:, :rank]
    largest = leading.abs().argmax(dim=0, keepdim=True)
    signs = leading.gather(0, largest).sign()
    basis: Tensor = (leading * signs).to(torch.float32)
    return basis


class _Moments:
    """Second moment of a feature's channels, and its directions.

    Directions follow the moment at the 1st, 2nd, 4th, 8th, ... sight.
    """

    def __init__(self, channels: int, *, rank: int) -> None:
        self.rank = rank
        self.sum = torch.zeros(channels, channels, dtype=torch.float64)
        self.count = 0
        self.basis: Tensor | None = None

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        rows = rows.to(torch.float64)
        self.sum += (rows.T @ rows).cpu()
        self.count += 1
        if self.count & (self.count - 1) == 0:
            self.basis = None

    def directions(self, like: Tensor) -> Tensor:
        if self.basis is None:
            self.basis = principal_directions(self.sum, rank=self.rank)
        return self.basis.to(like)


@RECON_LOSSES.register_module()
class ProjectedFeatureLoss(FeatureLoss):
    """Squared error in the leading directions of the float features.

    ``L = E_w |(s - t) K|^2 / E_w |t K|^2`` with the directions K, (C, r), of
    each feature. In training they come from the calibration images, before
    the first step; in reconstruction from the float outputs seen so far.

    Args:
        share: r / C, in (0, 1]; at least two directions are kept.
    """

    def __init__(self, *, share: float = 0.25) -> None:
        self.share = Number(low=1e-3, high=1).read(share, name='share')
        self._moments: dict[str, _Moments] = {}
        self._prepared: set[str] = set()

    def prepare(self, name: str, teacher: Tensor) -> None:
        """Count a float feature of a calibration batch, rows (P, C)."""
        self._prepared.add(name)
        self._of(name, teacher).add(teacher)

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        weights: Tensor | None = None,
        name: str = '',
    ) -> Tensor:
        """Return the loss of rows (P, C)."""
        moments = self._of(name, teacher)
        learns = name not in self._prepared and torch.is_grad_enabled()
        if learns or not moments.count:
            moments.add(teacher)
        basis = moments.directions(teacher)
        error = ((student - teacher) @ basis).square().sum(dim=-1)
        power = (teacher @ basis).square().sum(dim=-1)
        return weighted_mean(error, weights) / weighted_mean(
            power, weights
        ).clamp(min=1e-12)

    def _of(self, name: str, feature: Tensor) -> _Moments:
        channels = feature.shape[-1]
        if name not in self._moments:
            rank = max(round(self.share * channels), LEAST_RANK)
            self._moments[name] = _Moments(channels, rank=min(rank, channels))
        return self._moments[name]
