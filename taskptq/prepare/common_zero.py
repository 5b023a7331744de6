"""Grids per channel that share one zero point.

A convolution adds up products in integers only if all that it reads, or
writes, has one zero point. Scales may differ between channels: they go into
the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskptq.core.functional import MIN_SCALE


def common_zero_point(
    low: Tensor, high: Tensor, *, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor]:
    """Return scales of channels and the one zero point that costs least.

    Each channel keeps its whole range, ``s_c = max(-low_c / (z - quant_min),
    high_c / (quant_max - z))``. Of all z, the one with the least mean of
    ``(s_c / s_c*)^2`` is taken, where s_c* is the scale of a channel with a
    zero point of its own: squared errors grow with squared scales.

    >>> scale, zero_point = common_zero_point(
    ...     torch.tensor([-1.0, -1.0]), torch.tensor([3.0, 1.0]),
    ...     quant_min=0, quant_max=4)
    >>> scale, zero_point
    (tensor([1.5000, 0.5000]), tensor([2, 2], dtype=torch.int32))

    Args:
        low: (C,), lowest values.
        high: (C,), highest values.
        quant_min: Lowest code.
        quant_max: Highest code.

    Returns:
        Scales (C,) float32, and the zero point C times, int32.
    """
    low = low.double().clamp(max=0.0)
    high = high.double().clamp(min=0.0)
    points = torch.arange(quant_min, quant_max + 1, dtype=torch.float64)
    below = _steps(-low, (points - quant_min)[:, None])
    above = _steps(high, (quant_max - points)[:, None])
    scales = torch.maximum(below, above)  # points x C
    best = ((high - low) / (quant_max - quant_min)).clamp(min=MIN_SCALE)
    alive = high > low
    cost = torch.where(alive, (scales / best).square(), 0.0).sum(dim=1)
    chosen = int(cost.argmin())
    scale = torch.where(alive, scales[chosen], 1.0).clamp(min=MIN_SCALE)
    zero_point = torch.full(low.shape, int(points[chosen]), dtype=torch.int32)
    return scale.float(), zero_point


def _steps(reach: Tensor, codes: Tensor) -> Tensor:
    """Return the scale at which codes reach so far; inf with no codes."""
    needed = reach.expand(len(codes), -1)
    steps = needed / codes.clamp(min=1)
    none = (codes == 0) & (needed > 0)
    return torch.where(none, torch.inf, steps)
