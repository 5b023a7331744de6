"""What a weight costs in bits and in error at each step of its grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ['RateCurve', 'code_bits', 'rate_curve']

# Steps grow by a quarter of an octave.
RATIO = 2**0.25
# Bits of one frequency in a coder's table.
ENTRY_BITS = 12
# Octaves below the step whose widest code holds the largest weight.
CLIPPED_OCTAVES = 2


@dataclass(frozen=True, kw_only=True)
class RateCurve:
    """Rate and distortion of a weight on symmetric uniform grids.

    Args:
        weight: The weight, float, any shape.
        bounds: Lowest and highest code.
        steps: Grid steps, ascending.
        bits: Entropy of all codes and their table, for each step.
        errors: Sum of squared errors, for each step.
    """

    weight: Tensor
    bounds: tuple[int, int]
    steps: tuple[float, ...]
    bits: tuple[float, ...]
    errors: tuple[float, ...]

    def best(self, *, gain: float, price: float) -> int:
        """Return the index of least ``gain * error + price * bits``.

        Args:
            gain: Output loss of one unit of squared error.
            price: Output loss that one bit is worth.
        """
        costs = [
            gain * error + price * bits
            for error, bits in zip(self.errors, self.bits, strict=True)
        ]
        return costs.index(min(costs))

    def at(self, step: float) -> tuple[float, float]:
        """Return (bits, error) at any step."""
        return code_bits(self.weight, step, bounds=self.bounds)


def code_bits(
    weight: Tensor, step: float, *, bounds: tuple[int, int]
) -> tuple[float, float]:
    """Return bits of entropy-coded nearest codes, and the squared error.

    The entropy is that of static statistics (Shannon, 1948), plus 12 bits
    for each code between the lowest and the highest that occur.

    Args:
        weight: Any shape.
        step: Of the grid.
        bounds: Lowest and highest code.
    """
    codes = (weight / step).round_().clamp_(*bounds)
    error = float((codes * step).sub_(weight).square_().sum())
    low = int(codes.min())
    counts = torch.bincount(codes.to(torch.int64).flatten() - low).double()
    total = weight.numel()
    table = ENTRY_BITS * len(counts)
    counts = counts[counts > 0]
    entropy = total * math.log2(total) - float((counts * counts.log2()).sum())
    return entropy + table, error


@torch.no_grad()
def rate_curve(weight: Tensor, *, bounds: tuple[int, int]) -> RateCurve:
    """Measure a weight at steps from fine to coarse.

    Args:
        weight: Any shape, not empty.
        bounds: Lowest and highest code of its grid.
    """
    weight = weight.detach().float()
    largest = float(weight.abs().max())
    if largest == 0:
        return RateCurve(
            weight=weight,
            bounds=bounds,
            steps=(1.0,),
            bits=(float(ENTRY_BITS),),
            errors=(0.0,),
        )
    finest = largest / max(bounds[1], 1) / 2**CLIPPED_OCTAVES
    count = math.ceil(math.log2(2 * largest / finest) / math.log2(RATIO)) + 2
    steps = [finest * RATIO**i for i in range(max(count, 1))]
    found = [code_bits(weight, step, bounds=bounds) for step in steps]
    return RateCurve(
        weight=weight,
        bounds=bounds,
        steps=tuple(steps),
        bits=tuple(bits for bits, _ in found),
        errors=tuple(error for _, error in found),
    )
