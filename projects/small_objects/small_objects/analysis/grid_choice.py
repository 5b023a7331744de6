"""Choose the grid that suffers least from quantized logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from small_objects.analysis.grid_error import Grid, rms

# Ten equally likely values of a standard normal variable.
QUANTILES = (
    -1.645,
    -1.036,
    -0.674,
    -0.385,
    -0.126,
    0.126,
    0.385,
    0.674,
    1.036,
    1.645,
)
# Probability of points outside a target distribution.
LEAST = 1e-12


def choose_grid(
    targets: Tensor,
    *,
    make: Callable[..., Grid],
    settings: Sequence[Mapping[str, Any]],
    num_bits: int = 4,
    logit_range: float = 20.0,
    spread: float = 0.0,
) -> list[dict[str, Any]]:
    """Rank grids by the error that quantized logits would cause.

    Predictions are assumed to be correct: two-hot at the target, or with a
    ``spread`` the mean of two-hot distributions around it. For a target
    outside a grid, the clipped distance counts as its error.

    Args:
        targets: Encoded coordinates of training boxes, (N,) or (N, 4).
        make: Makes a grid from keyword arguments, e.g. ``BoxGrid``.
        settings: Keyword arguments of each candidate.
        num_bits: Bits of the logits.
        logit_range: Largest minus smallest logit; the step is this over
            2^num_bits - 1.
        spread: Standard deviation of the predictions' uncertainty, in the
            unit of the targets.

    Returns:
        The candidates, best first: their settings, ``rounding`` and
        ``clipping`` (rms errors in the unit of the targets), ``total`` (both)
        and ``outside``, the share of targets outside the grid.

    Raises:
        ValueError: If there is no target.
    """
    if targets.numel() == 0:
        raise ValueError('0 targets: give the encoded boxes of a training set')
    step = logit_range / (2**num_bits - 1)
    target = targets.flatten().double()
    shifts = target.new_tensor(QUANTILES if spread > 0 else (0.0,)) * spread
    found = []
    for setting in settings:
        grid = make(**setting)
        low, high = float(grid.points[0]), float(grid.points[-1])
        inside = target.clamp(low, high)
        share = grid.two_hot(inside[:, None] + shifts).mean(dim=1)
        rounding = rms(
            grid.expected_rms(share.clamp(min=LEAST).log(), step=step)
        )
        clipping = rms(inside - target)
        found.append(
            {
                **setting,
                'rounding': rounding,
                'clipping': clipping,
                'total': math.hypot(rounding, clipping),
                'outside': float((inside != target).double().mean()),
            }
        )
    return sorted(found, key=lambda item: item['total'])
