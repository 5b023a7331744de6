"""What every loss between features has: rows, weights, both its ports.

A :class:`FeatureLoss` compares features that somebody has chosen: a
``DistillationView`` in training, or reconstruction, where it is a ReconLoss
of a unit's outputs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from taskptq.reconstruction.losses import Outputs, ReconContext


def rows_of(feature: Tensor) -> Tensor:
    """Return a feature's positions as rows, (B, C, H, W) -> (B H W, C).

    Args:
        feature: Map (B, C, H, W), or (..., C), e.g. tokens.

    >>> rows_of(torch.arange(8.0).reshape(1, 2, 2, 2))[0]
    tensor([0., 4.])
    """
    if feature.dim() == 4:
        feature = feature.permute(0, 2, 3, 1)
    return feature.reshape(-1, feature.shape[-1])


def tokens_of(feature: Tensor) -> Tensor:
    """Return a feature as token vectors, (B, C, H, W) -> (B, H W, C).

    Args:
        feature: Map (B, C, H, W), or (..., N, C).
    """
    if feature.dim() == 4:
        return feature.flatten(2).transpose(1, 2)
    return feature


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean over rows, (P, ...) -> (...).

    Args:
        values: One row for each position.
        weights: (P,), non-negative; None weighs all the same. If all are 0,
            so is the mean.
    """
    if weights is None:
        return values.mean(dim=0)
    weights = weights.to(values).reshape(-1, *[1] * (values.dim() - 1))
    return (weights * values).sum(dim=0) / weights.sum().clamp(min=1e-12)


def evenly(count: int, *, limit: int | None, device: torch.device) -> Tensor:
    """Return at most ``limit`` indices below ``count``, evenly spaced.

    >>> evenly(5, limit=3, device=torch.device('cpu'))
    tensor([0, 2, 4])
    """
    if limit is None or count <= limit:
        return torch.arange(count, device=device)
    return torch.linspace(0, count - 1, limit, device=device).round().long()


class FeatureLoss:
    """Base class; subclasses implement :meth:`compare`.

    As a ReconLoss it compares the outputs of a unit, or all named outputs of
    the network, and sums over them. Outputs without gradient (masks, counts)
    are left out.

    Attributes:
        reads: What ``compare`` takes: 'rows' (P, C); 'tokens' (..., N, C);
            'attention' (..., N, M), rows over M keys.
        same_width: Whether both features must have as many channels.
    """

    reads: ClassVar[str] = 'rows'
    same_width: ClassVar[bool] = True

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        weights: Tensor | None = None,
        name: str = '',
    ) -> Tensor:
        """Return the loss between two features.

        Args:
            student: Feature of the quantized model; see ``reads``.
            teacher: That of the float model, without gradient.
            weights: Of the rows, (P,), non-negative; None is 1 for all. Only
                losses that read rows have them.
            name: Name of the feature, for losses that keep statistics.
        """
        raise NotImplementedError

    def prepare(self, name: str, teacher: Tensor) -> None:
        """See a float feature before the first step; does nothing here.

        Args:
            name: Name of the feature.
            teacher: Feature of a calibration batch, as ``compare`` gets it.
        """

    def arrange(self, feature: Tensor) -> Tensor:
        """Lay a raw feature out as ``compare`` reads it."""
        if self.reads == 'rows':
            return rows_of(feature)
        return tokens_of(feature)

    def __call__(
        self, quant_out: Outputs, float_out: Outputs, context: ReconContext
    ) -> Tensor:
        """Return the loss of a unit; shapes of both outputs are equal."""
        if isinstance(quant_out, Tensor) or isinstance(float_out, Tensor):
            assert isinstance(quant_out, Tensor)
            assert isinstance(float_out, Tensor)
            quant_out, float_out = {'0': quant_out}, {'0': float_out}
        losses = [
            self.compare(
                self.arrange(quant.float()),
                self.arrange(float_out[name].detach().float()),
                name=f'{context.unit}:{name}',
            )
            if quant.numel()
            else quant.float().sum()
            for name, quant in quant_out.items()
            if quant.is_floating_point() and quant.dim() >= 2
        ]
        if not losses:
            raise ValueError(
                f'{type(self).__name__} finds no features among the outputs '
                f'of the unit {context.unit!r}: remove loss'
            )
        return torch.stack(losses).sum()
