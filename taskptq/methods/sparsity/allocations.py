"""How a global rate of zeros is shared out among layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from taskptq.methods.sparsity.masks import (
    exact_count,
    global_masks,
    remove_lowest,
)


def erk_rates(shapes: Sequence[Sequence[int]], rate: float) -> list[float]:
    """Return rates by the Erdos-Renyi kernel rule.

    Density of a layer: ``min(1, e sum(shape) / prod(shape))``, with e such
    that the global density is ``1 - rate`` (Evci et al., 'Rigging the
    lottery', ICML 2020, section 3).

    >>> [round(r, 4) for r in erk_rates([(8, 4), (8, 8)], 0.5)]
    [0.3571, 0.5714]

    Args:
        shapes: Shape of each layer's weight.
        rate: Global share of zeros, 0 to 1.

    Returns:
        Share of zeros of each layer.
    """
    sizes = [math.prod(shape) for shape in shapes]
    dense: set[int] = set()
    while True:
        budget = (1 - rate) * sum(sizes) - sum(sizes[i] for i in dense)
        open_ = [i for i in range(len(sizes)) if i not in dense]
        weight = sum(sum(shapes[i]) for i in open_)
        factor = max(0.0, budget) / weight if weight else 0.0
        full = {i for i in open_ if factor * sum(shapes[i]) > sizes[i]}
        if not full:
            return [
                0.0 if i in dense else 1 - factor * sum(shapes[i]) / sizes[i]
                for i in range(len(sizes))
            ]
        dense |= full


def exact_counts(
    rates: Sequence[float], sizes: Sequence[int], count: int
) -> list[int]:
    """Round rates to counts with an exact sum, by largest remainders.

    >>> exact_counts([0.5, 0.5, 0.5], [3, 3, 3], 5)
    [2, 2, 1]

    Args:
        rates: Wished share of zeros of each layer.
        sizes: Weights of each layer.
        count: Zeros in all.

    Raises:
        ValueError: If the layers hold fewer weights.
    """
    if not 0 <= count <= sum(sizes):
        raise ValueError(f'count={count} of {sum(sizes)} weights')
    wished = [rate * size for rate, size in zip(rates, sizes, strict=True)]
    counts = [min(int(w), size) for w, size in zip(wished, sizes, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: counts[i] - wished[i])
    while (missing := count - sum(counts)) != 0:
        step = 1 if missing > 0 else -1
        for i in order if step > 0 else reversed(order):
            if missing and 0 <= counts[i] + step <= sizes[i]:
                counts[i] += step
                missing -= step
    return counts


def norms(weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the Frobenius norm of each weight, at least a tiny one."""
    return [w.norm().clamp(min=torch.finfo(w.dtype).tiny) for w in weights]


@torch.no_grad()
def scaled_masks(
    scores: Sequence[Tensor], scales: Sequence[Tensor | float], *, rate: float
) -> list[Tensor]:
    """Remove the lowest scores over scales of all layers together.

    The rate over all layers is exact: no layer's own rate is set.

    Args:
        scores: Magnitudes of each layer's weights.
        scales: Relative threshold of each layer.
        rate: Global share of zeros.
    """
    total = sum(score.numel() for score in scores)
    return global_masks(
        [score / scale for score, scale in zip(scores, scales, strict=True)],
        exact_count(rate, total=total),
    )


@torch.no_grad()
def fixed_masks(
    weights: Sequence[Tensor], *, rate: float, allocation: str
) -> list[Tensor]:
    """Return masks by magnitude, without looking at data.

    Args:
        weights: Prunable weights.
        rate: Global share of zeros, met exactly.
        allocation: 'uniform', 'erk' or 'l2'.

    Raises:
        ValueError: If the allocation is another.
    """
    scores = [weight.abs() for weight in weights]
    if allocation == 'l2':
        return scaled_masks(scores, norms(weights), rate=rate)
    if allocation == 'erk':
        rates = erk_rates([tuple(w.shape) for w in weights], rate)
    elif allocation == 'uniform':
        rates = [rate] * len(weights)
    else:
        raise ValueError(f'allocation={allocation!r} needs data, or is none')
    sizes = [weight.numel() for weight in weights]
    count = exact_count(rate, total=sum(sizes))
    counts = exact_counts(rates, sizes, count)
    return [
        remove_lowest(score, own)
        for score, own in zip(scores, counts, strict=True)
    ]
