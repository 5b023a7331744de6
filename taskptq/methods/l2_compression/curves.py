"""What a weight costs in bits and in error at each step of its grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from taskptq.core.entropy import (
    ENTRY_BITS,
    code_counts,
    code_lengths,
    coded_bits,
)

__all__ = ['RateCurve', 'code_bits', 'code_prices', 'rate_curve']

# Steps grow by a quarter of an octave.
RATIO = 2**0.25
# Octaves below the step whose widest code holds the largest weight.
CLIPPED_OCTAVES = 3


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
    """Return bits of entropy-coded codes, and their squared error.

    The entropy is that of static statistics (Shannon, 1948), plus 12 bits
    for each code between the lowest and the highest that occur. Codes are
    rounded by :func:`code_prices`.

    Args:
        weight: Any shape.
        step: Of the grid.
        bounds: Lowest and highest code.
    """
    steps = weight / step
    codes = steps.round().clamp_(*bounds)
    prices = _prices(steps, codes, bounds=bounds)
    nearer = codes - codes.sign()
    gain = prices[(codes - bounds[0]).long()]
    gain -= prices[(nearer - bounds[0]).long()]
    gain += (steps - codes).square_()
    codes = torch.where(gain > (steps - nearer).square_(), nearer, codes)
    error = float((codes * step).sub_(weight).square_().sum())
    return coded_bits(code_counts(codes, bounds=bounds)), error


def code_prices(
    weight: Tensor, step: float, *, bounds: tuple[int, int]
) -> Tensor:
    """Return what each code costs, in squared steps: (levels,).

    A code of ``b`` bits costs ``b |dD / dR|`` with the slope of high-rate
    theory, ``2 ln 2 D``, from which ``D`` is the mean squared error of
    nearest codes (Sullivan and Wiegand, IEEE SPM 1998, on Lagrangians in
    coding).

    Args:
        weight: Any shape.
        step: Of the grid.
        bounds: Lowest and highest code.
    """
    steps = weight / step
    return _prices(steps, steps.round().clamp_(*bounds), bounds=bounds)


def _prices(
    steps: Tensor, codes: Tensor, *, bounds: tuple[int, int]
) -> Tensor:
    counts = code_counts(codes, bounds=bounds)
    bits = code_lengths(counts)
    mean = float((steps - codes).square_().mean())
    return (2 * math.log(2) * min(mean, 1 / 12) * bits).to(steps)


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
