"""A differentiable count of codes: what entropy coding takes, and its slope.

After Shi et al., 'Lossy and lossless (L2) post-training model size
compression', ICCV 2023, section 3.3, by scattering each code's kernel into
the few bins that it touches: no sorting, and no sampling.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['KERNELS', 'SoftCounts', 'code_slopes', 'soft_bits', 'soft_counts']

KERNELS = ('cosine', 'linear', 'triangular')
# An empty bin counts as half of a code, so that no code costs nothing.
LEAST_COUNT = 0.5


class SoftCounts(NamedTuple):
    """Counts of the bins around the codes.

    Attributes:
        low: Code of the first bin.
        counts: P(q) of each bin, (bins,).
        slopes: dP(q)/dq of each bin, (bins,), without gradient.
    """

    low: int
    counts: Tensor
    slopes: Tensor


def _cumulative(u: Tensor, kernel: str) -> Tensor:
    """Return K(u): 0 up to -1, 1 from 1 on."""
    u = u.clamp(-1, 1)
    if kernel == 'cosine':
        return (1 - torch.cos(math.pi * (u + 1) / 2)) / 2
    if kernel == 'linear':
        return (u + 1) / 2
    return torch.where(u < 0, (u + 1).square() / 2, 1 - (1 - u).square() / 2)


def _density(u: Tensor, kernel: str) -> Tensor:
    """Return K'(u)."""
    inside = (u.abs() < 1).to(u)
    if kernel == 'cosine':
        return inside * math.pi / 4 * torch.sin(math.pi * (u + 1) / 2)
    if kernel == 'linear':
        return inside / 2
    return inside * (1 - u.abs())


def soft_counts(
    codes: Tensor,
    *,
    half_width: float,
    kernel: str = 'cosine',
    weights: Tensor | None = None,
) -> SoftCounts:
    """Count real-valued codes: ``P(q) = F(q + 1/2) - F(q - 1/2)``.

    ``F(x) = sum_i K((x - c_i) / d)`` is the number of codes below x, smooth
    over the half width d.

    Args:
        codes: c, real, any shape, not empty.
        half_width: d, in codes.
        kernel: One of ``KERNELS``.
        weights: How often each code counts, shaped like ``codes``.

    Raises:
        ValueError: If the kernel is unknown or ``half_width`` not positive.
    """
    if kernel not in KERNELS:
        raise ValueError(f'kernel={kernel!r}: choose one of {KERNELS}')
    if not half_width > 0:
        raise ValueError(f'half_width={half_width} must be above 0')
    flat = codes.flatten().double()
    often = torch.ones_like(flat) if weights is None else weights.flatten()
    nearest = flat.detach().round()
    reach = math.ceil(half_width + 0.5)
    low, high = (int(end) for end in torch.aminmax(nearest))
    bins = high - low + 1 + 2 * reach
    counts = flat.new_zeros(bins)
    slopes = flat.new_zeros(bins)
    for offset in range(-reach, reach + 1):
        center = nearest + offset
        place = (center - low + reach).long()
        upper = (center + 0.5 - flat) / half_width
        lower = (center - 0.5 - flat) / half_width
        part = _cumulative(upper, kernel) - _cumulative(lower, kernel)
        counts = counts.index_add(0, place, often * part)
        with torch.no_grad():
            rise = _density(upper, kernel) - _density(lower, kernel)
            slopes.index_add_(0, place, often * rise / half_width)
    return SoftCounts(low - reach, counts, slopes)


def soft_bits(
    codes: Tensor,
    *,
    half_width: float,
    kernel: str = 'cosine',
    weights: Tensor | None = None,
) -> Tensor:
    """Return the bits of all codes, rounded: ``-sum_i log2(P(q_i) / n)``.

    The gradient comes through the counts, and through each ``q_i =
    round(c_i)``, straight through the rounding (ties go to even).

    Args:
        codes: See :func:`soft_counts`.
        half_width: In codes; only codes this near to the edge of a bin have
            a gradient, so all have one from 1/2 on.
        kernel: One of ``KERNELS``.
        weights: How often each code counts.
    """
    found = soft_counts(
        codes, half_width=half_width, kernel=kernel, weights=weights
    )
    flat = codes.flatten().double()
    often = torch.ones_like(flat) if weights is None else weights.flatten()
    place = (flat.detach().round() - found.low).long()
    moved = (flat - flat.detach()) * found.slopes[place]
    own = (found.counts[place] + moved).clamp(min=LEAST_COUNT)
    total = often.sum()
    return (often * (total.log2() - own.log2())).sum()


def code_slopes(counts: Tensor, *, half_width: float = 1.0) -> Tensor:
    """Return by how many bits a code grows per step: (levels,).

    The gradient of :func:`soft_bits` for codes that lie in the middle of
    their bins. It points away from frequent codes.

    Args:
        counts: How often each code of a grid occurs, (levels,).
        half_width: See :func:`soft_bits`.
    """
    slopes = counts.new_zeros(counts.shape, dtype=torch.float64)
    used = counts.nonzero().flatten()
    if not used.numel():
        return slopes
    with torch.enable_grad():
        codes = used.double().requires_grad_(True)
        often = counts[used].double()
        bits = soft_bits(
            codes, half_width=half_width, kernel='linear', weights=often
        )
        (gradient,) = torch.autograd.grad(bits, codes)
    slopes[used] = gradient / often
    return slopes
