"""Steps of all weights for a number of bits: equal slopes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from taskptq.methods.l2_compression.curves import RateCurve

__all__ = ['Allocation', 'allocate']

# Halvings of the logarithms of price and common factor.
PRICE_ROUNDS, FACTOR_ROUNDS = 60, 14
# All steps move together by at most an octave: a weight whose curve is not
# convex near zero bits may leave that much.
WIDEST_FACTOR = 2.0


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Chosen steps.

    Args:
        steps: Step of each weight.
        bits: Bits of each weight's codes and table.
        loss: Output loss, the sum of gain x squared error.
    """

    steps: dict[str, float]
    bits: dict[str, float]
    loss: float

    @property
    def total_bits(self) -> float:
        """Bits of all weights."""
        return sum(self.bits.values())


def allocate(
    curves: Mapping[str, RateCurve],
    *,
    gains: Mapping[str, float],
    budget: float,
) -> Allocation:
    """Share bits out so that the output loss is least.

    ``min sum_l g_l D_l(s_l)`` with ``sum_l R_l(s_l) <= budget`` has equal
    slopes ``g_l dD_l / dR_l`` (Shoham and Gersho, IEEE TASSP 1988): one
    price of a bit for all weights, found by bisection. A common factor of
    all steps then meets the budget closely.

    Args:
        curves: Of each weight.
        gains: Output loss of one unit of squared error of each weight.
        budget: Bits of all codes and tables.

    Raises:
        ValueError: If the budget is below what the coarsest grids take.
    """
    least = sum(min(curve.bits) for curve in curves.values())
    if budget < least:
        raise ValueError(
            f'the weights take at least {math.ceil(least / 8):,} bytes, but '
            f'{int(budget // 8):,} are left for them: allow a larger file'
        )
    slopes = [
        gains[name] * max(curve.errors) for name, curve in curves.items()
    ]
    low, high = -80.0, math.log2(max(*slopes, 1e-30)) + 1
    for _ in range(PRICE_ROUNDS):
        middle = (low + high) / 2
        chosen = _chosen(curves, gains, price=2.0**middle)
        spent = sum(curves[k].bits[i] for k, i in chosen.items())
        low, high = (middle, high) if spent > budget else (low, middle)
    chosen = _chosen(curves, gains, price=2.0**high)
    steps = {name: curves[name].steps[i] for name, i in chosen.items()}
    return _scaled(curves, steps, gains=gains, budget=budget)


def _chosen(
    curves: Mapping[str, RateCurve],
    gains: Mapping[str, float],
    *,
    price: float,
) -> dict[str, int]:
    return {
        name: curve.best(gain=gains[name], price=price)
        for name, curve in curves.items()
    }


def _scaled(
    curves: Mapping[str, RateCurve],
    steps: Mapping[str, float],
    *,
    gains: Mapping[str, float],
    budget: float,
) -> Allocation:
    """Find the smallest common factor of all steps that keeps the budget."""
    best = _measured(curves, steps, gains=gains, factor=1.0)
    low, high = 1 / WIDEST_FACTOR, 1.0
    if best.total_bits > budget:
        low, high = 1.0, WIDEST_FACTOR
        best = _measured(curves, steps, gains=gains, factor=high)
    for _ in range(FACTOR_ROUNDS):
        middle = math.sqrt(low * high)
        found = _measured(curves, steps, gains=gains, factor=middle)
        if found.total_bits > budget:
            low = middle
        else:
            high, best = middle, found
    return best


def _measured(
    curves: Mapping[str, RateCurve],
    steps: Mapping[str, float],
    *,
    gains: Mapping[str, float],
    factor: float,
) -> Allocation:
    scaled = {name: factor * step for name, step in steps.items()}
    found = {name: curves[name].at(step) for name, step in scaled.items()}
    return Allocation(
        steps=scaled,
        bits={name: bits for name, (bits, _) in found.items()},
        loss=sum(gains[name] * error for name, (_, error) in found.items()),
    )
