"""Ranking-aware distillation: a row of attention keeps its order.

Bi-ViT, Li et al., AAAI 2024 (arXiv 2305.12354). Its formula is that of the
ranking loss of Liu et al., NeurIPS 2021 (post-training quantization for
vision transformers).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from taskptq.core.settings import Number, Whole
from taskptq.methods.feature_losses.base import FeatureLoss, evenly
from taskptq.registry import RECON_LOSSES


def ranking_hinge(
    student: Tensor,
    teacher: Tensor,
    others: Tensor | None = None,
    other_targets: Tensor | None = None,
    *,
    margin: float = 0.0,
    gap: float = 0.0,
) -> Tensor:
    """Return the hinges of all pairs whose order the teacher knows.

    ``sum over pairs of max(0, margin - (s_j - s_k) sign(t_j - t_k))``.

    Args:
        student: (..., J), values of the student.
        teacher: (..., J), those of the teacher.
        others: (..., K), values to pair them with; None pairs ``student``
            with itself, each pair once.
        other_targets: (..., K), the teacher's.
        margin: By how much a pair must be ordered.
        gap: The teacher's difference up to which a pair has no order, >= 0.

    Returns:
        (..., 2): sum over the pairs, and their number.
    """
    single = others is None or other_targets is None
    if others is None or other_targets is None:
        others, other_targets = student, teacher
    order = teacher[..., :, None] - other_targets[..., None, :]
    apart = student[..., :, None] - others[..., None, :]
    known = order.abs() > gap
    if single:
        known = known & torch.ones_like(known).triu(diagonal=1)
    hinge = (margin - apart * order.sign()).clamp(min=0)
    hinge = torch.where(known, hinge, torch.zeros_like(hinge))
    count = known.sum(dim=(-2, -1)).to(hinge)
    return torch.stack([hinge.sum(dim=(-2, -1)), count], dim=-1)


@RECON_LOSSES.register_module()
class RankingLoss(FeatureLoss):
    """Mean hinge of the pairs of a row, in units of uniform attention.

    Each row pairs the teacher's ``top`` keys with ``top`` others, evenly
    spaced in its order: all pairs of N keys are N^2 a row. Values are
    multiplied by the number of keys, so that a weight and a margin mean the
    same in layers of any size.

    Args:
        top: Keys of a row that are compared with as many others.
        margin: Margin of the hinge, relative to uniform attention, >= 0.
        gap: Difference of the teacher up to which two keys have no order,
            relative to uniform attention, >= 0.
        max_rows: Rows of a map that are compared, evenly spaced.
    """

    reads: ClassVar[str] = 'attention'
    same_width: ClassVar[bool] = True

    def __init__(
        self,
        *,
        top: int = 16,
        margin: float = 0.1,
        gap: float = 0.01,
        max_rows: int = 256,
    ) -> None:
        rule = Number(low=0, high=1e6)
        self.top = Whole(low=1, high=4096).read(top, name='top')
        self.margin = rule.read(margin, name='margin')
        self.gap = rule.read(gap, name='gap')
        self.max_rows = Whole(low=1, high=65536).read(
            max_rows, name='max_rows'
        )

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        weights: Tensor | None = None,
        name: str = '',
    ) -> Tensor:
        """Return the loss of attention maps (..., N, M)."""
        num_rows, num_keys = student.shape[-2:]
        rows = evenly(num_rows, limit=self.max_rows, device=student.device)
        student = student[..., rows, :] * num_keys
        teacher = teacher[..., rows, :] * num_keys
        if num_keys <= 2 * self.top:
            found = self._hinge(student, teacher)
        else:
            order = teacher.argsort(dim=-1, descending=True)
            rest = self.top + evenly(
                num_keys - self.top, limit=self.top, device=student.device
            )
            first, second = order[..., : self.top], order[..., rest]
            found = self._hinge(
                student.gather(-1, first),
                teacher.gather(-1, first),
                student.gather(-1, second),
                teacher.gather(-1, second),
            )
        hinges, pairs = found.reshape(-1, 2).sum(dim=0)
        mean: Tensor = hinges / pairs.clamp(min=1)
        return mean

    def _hinge(self, *values: Tensor) -> Tensor:
        return ranking_hinge(*values, margin=self.margin, gap=self.gap)
