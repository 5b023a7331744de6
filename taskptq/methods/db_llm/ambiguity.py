"""Deviation-aware distillation: ambiguous samples count more.

The idea of DB-LLM, Chen et al., ACL Findings 2024 (arXiv 2402.11960): a
quantized model errs most where its teacher is undecided. Its formula could
not be read; this one is a power of the normalized entropy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def class_entropy(probabilities: Tensor, *, dim: int) -> Tensor:
    """Return the entropy over classes relative to its maximum, in [0, 1].

    Args:
        probabilities: Sum to 1 over ``dim``, of C >= 2 classes.
        dim: Axis of the classes, which the result lacks.

    >>> class_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), dim=1)
    tensor([1., 0.])
    """
    entropy = torch.special.entr(probabilities).sum(dim=dim)
    share: Tensor = entropy / math.log(probabilities.shape[dim])
    return share


def binary_entropy(probabilities: Tensor) -> Tensor:
    """Return the entropy of independent yes-no decisions, in [0, 1].

    Args:
        probabilities: Of one answer each, any shape.

    >>> binary_entropy(torch.tensor([0.5, 1.0]))
    tensor([1., 0.])
    """
    both = torch.stack([probabilities, 1 - probabilities], dim=-1)
    return class_entropy(both, dim=-1)


@torch.no_grad()
def ambiguity_weights(
    entropy: Tensor, *, power: float = 1.0, eps: float = 0.01
) -> Tensor:
    """Return ``(eps + h)^g`` over its mean, without gradient.

    Args:
        entropy: h in [0, 1], any shape.
        power: g; 0 weighs all samples the same.
        eps: Weight of a sample without any doubt.
    """
    weights = (eps + entropy).pow(power)
    return weights / weights.mean().clamp(min=1e-12)
