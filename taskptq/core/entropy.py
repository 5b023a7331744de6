"""Entropy of integer codes: what a coder with static tables needs."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    'ENTRY_BITS',
    'code_counts',
    'code_lengths',
    'coded_bits',
    'count_bits',
]

# Bits of one frequency in a coder's table.
ENTRY_BITS = 12


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


def coded_bits(counts: Tensor) -> float:
    """Return the bits of all codes, and of a coder's table of them.

    The table has 12 bits for each code between the lowest and the highest
    that occur.

    >>> coded_bits(torch.tensor([0.0, 4.0, 0.0, 4.0]))
    44.0

    Args:
        counts: (levels,), not all 0.
    """
    used = counts.nonzero()
    entries = int(used[-1] - used[0]) + 1
    return count_bits(counts) + ENTRY_BITS * entries


def code_lengths(counts: Tensor) -> Tensor:
    """Return the bits of each code, ``-log2(count / n)``: (levels,).

    A code that doesn't occur costs a bit more than one that does once.

    >>> code_lengths(torch.tensor([4.0, 2.0, 2.0, 0.0]))
    tensor([1., 2., 2., 4.], dtype=torch.float64)

    Args:
        counts: (levels,), not all 0.
    """
    counts = counts.double()
    return counts.sum().log2() - counts.clamp(min=0.5).log2()
