"""Which proposals a student sees differently from its teacher.

IDa-Det, Xu et al., ECCV 2022 (arXiv 2210.03477), equations 6.81 to 6.86 of
'Binary Neural Networks', CRC Press. One pair of patches estimates no matrix
of covariances, so Sigma is read as one variance for each channel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spatial_softmax(patches: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Return where each channel responds, as a distribution over positions.

    Args:
        patches: (N, C, H, W).
        temperature: T > 0 of equation 6.81.

    Returns:
        (N, C, H W), each channel sums to 1.
    """
    return (patches.flatten(2) / temperature).softmax(dim=-1)


@torch.no_grad()
def information_discrepancy(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 1.0,
    eps: float = 1e-6,
) -> Tensor:
    """Return how differently pairs of patches respond (eq. 6.83).

    ``eps_n = sum_c |t_nc - s_nc|^2 / (v_nc + eps)`` with t and s from
    :func:`spatial_softmax` and v the mean of their variances over positions.

    Args:
        student: (N, C, H, W).
        teacher: (N, C, H, W), cut out at the same places.
        temperature: See :func:`spatial_softmax`.
        eps: Keeps constant channels finite.

    Returns:
        (N,), >= 0.
    """
    s = spatial_softmax(student, temperature=temperature)
    t = spatial_softmax(teacher, temperature=temperature)
    variance = (t.var(dim=-1, correction=0) + s.var(dim=-1, correction=0)) / 2
    apart = (t - s).square().sum(dim=-1)
    return (apart / (variance + eps)).sum(dim=1)


def select_pairs(scores: Tensor, images: Tensor, *, share: float) -> Tensor:
    """Return the pairs of the largest discrepancy, image by image (eq. 6.86).

    Args:
        scores: (N,).
        images: Image of each pair, (N,).
        share: gamma in (0, 1]; ``ceil(share n)`` of an image's n are kept.

    Returns:
        Indices into (N,), ascending.

    >>> select_pairs(torch.tensor([1.0, 5.0, 2.0]), torch.zeros(3),
    ...              share=0.5)
    tensor([1, 2])
    """
    kept = []
    for image in images.unique():
        own = (images == image).nonzero()[:, 0]
        # 0.6 * 5 is 3.0000000000000004 in binary.
        count = math.ceil(share * len(own) - 1e-9)
        best = scores[own].topk(min(max(count, 1), len(own))).indices
        kept.append(own[best])
    if not kept:
        return torch.zeros(0, dtype=torch.int64, device=scores.device)
    return torch.cat(kept).sort().values
