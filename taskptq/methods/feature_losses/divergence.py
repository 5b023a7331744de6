"""Kullback-Leibler divergence of logits."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from taskptq.core.settings import Choice, Number
from taskptq.methods.feature_losses.base import FeatureLoss, weighted_mean
from taskptq.registry import RECON_LOSSES

KINDS = ('softmax', 'sigmoid')


@RECON_LOSSES.register_module()
class FeatureDivergenceLoss(FeatureLoss):
    """Divergence of the student's classes from the teacher's.

    ``L = T^2 E_w KL(p_t || p_s)`` at the temperature T, Hinton et al., 2015:
    over a softmax of the channels, or summed over channels that are
    independent (sigmoid).

    Args:
        kind: 'softmax' or 'sigmoid'.
        temperature: T > 0.
    """

    def __init__(
        self, *, kind: str = 'softmax', temperature: float = 1.0
    ) -> None:
        self.kind = Choice(choices=KINDS).read(kind, name='kind')
        self.temperature = Number(low=1e-3, high=1e3).read(
            temperature, name='temperature'
        )

    def compare(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        weights: Tensor | None = None,
        name: str = '',
    ) -> Tensor:
        """Return the loss of rows of logits (P, C)."""
        student = student / self.temperature
        teacher = teacher / self.temperature
        if self.kind == 'softmax':
            apart = functional.kl_div(
                student.log_softmax(dim=-1),
                teacher.log_softmax(dim=-1),
                reduction='none',
                log_target=True,
            )
        else:
            target = teacher.sigmoid()
            crossed = functional.binary_cross_entropy_with_logits(
                student, target, reduction='none'
            )
            own = functional.binary_cross_entropy_with_logits(
                teacher, target, reduction='none'
            )
            apart = crossed - own
        mean = weighted_mean(apart.sum(dim=-1), weights)
        square: float = self.temperature * self.temperature
        return mean * square
