"""Entropy of integer codes: what a coder with static tables needs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['code_counts', 'count_bits']


def code_counts(codes: Tensor, *, bounds: tuple[int, int]) -> Tensor:
    """Count how often each code of a grid occurs: float64, (levels,).

    Args:
        codes: Whole numbers within ``bounds``, any shape and dtype.
        bounds: Lowest and highest code.
    """
    low, high = bounds
    flat = (codes - low).to(torch.int64).flatten()
    return torch.bincount(flat, minlength=high - low + 1).double()


def count_bits(counts: Tensor) -> float:
    """Return the bits of all codes: n H of their counts (Shannon, 1948).

    >>> round(count_bits(torch.tensor([80.0, 10.0, 8.0, 2.0])) / 100, 4)
    0.9941

    Args:
        counts: (levels,), not all 0.
    """
    used = counts[counts > 0].double()
    total = used.sum()
    return float(total * total.log2() - (used * used.log2()).sum())
