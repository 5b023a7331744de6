"""Distribution guided distillation of Q-ViT: normalized Gram matrices.

Li et al., NeurIPS 2022 (arXiv 2210.06707), equations 2.22 and 2.23 of
'Binary Neural Networks', CRC Press.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from taskptq.core.settings import Whole
from taskptq.methods.feature_losses.base import FeatureLoss, evenly
from taskptq.registry import RECON_LOSSES


def normalized_gram(tokens: Tensor) -> Tensor:
    """Return ``q q^T / |q q^T|_F``, which no scale of q changes (eq. 2.22).

    Args:
        tokens: Queries or keys, (..., N, d).

    Returns:
        (..., N, N).
    """
    gram = tokens @ tokens.transpose(-2, -1)
    norm = torch.linalg.matrix_norm(gram, keepdim=True)
    normalized: Tensor = gram / norm.clamp(min=1e-12)
    return normalized


def gram_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance of the normalized Gram matrices (eq. 2.23).

    Args:
        student: (..., N, d).
        teacher: (..., N, d'), as many tokens; d' may be another width.

    Returns:
        Frobenius norm of the difference, (...); its gradient is 0 at 0.
    """
    apart = normalized_gram(student) - normalized_gram(teacher)
    distance: Tensor = torch.linalg.matrix_norm(apart)
    return distance


@RECON_LOSSES.register_module()
class GramLoss(FeatureLoss):
    """Mean distance of normalized Gram matrices of tokens.

    The paper sums over layers and heads; the mean keeps one weight for
    models of any depth. Taps on queries and keys make it the paper's loss.

    Args:
        max_tokens: Tokens of a feature that are compared, evenly spaced:
            time and memory grow with their square.
    """

    reads: ClassVar[str] = 'tokens'
    same_width: ClassVar[bool] = False

    def __init__(self, *, max_tokens: int = 256) -> None:
        self.max_tokens = Whole(low=2, high=65536).read(
            max_tokens, name='max_tokens'
        )

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        weights: Tensor | None = None,
        name: str = '',
    ) -> Tensor:
        """Return the loss of tokens (..., N, C)."""
        chosen = evenly(
            student.shape[-2], limit=self.max_tokens, device=student.device
        )
        return gram_distance(
            student[..., chosen, :], teacher[..., chosen, :]
        ).mean()
