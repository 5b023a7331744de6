"""Gradients of rounding to levels: what share of them a weight gets.

Rounding has no useful derivative, so training replaces it by a factor:
``dL/dw = dL/dw_hat * factor``. Every estimator is a pure function of the
weights (C, N), one output channel a row, and their levels (C, K), ascending.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Least distance that is divided by.
LEAST = 1e-30

Estimator = Callable[[Tensor, Tensor], Tensor]


def identity(weight: Tensor, levels: Tensor) -> Tensor:
    """Return 1 everywhere: the plain straight-through estimator.

    Bengio et al., 'Estimating or propagating gradients', 2013.

    Args:
        weight: (C, N).
        levels: (C, K), ascending.

    Returns:
        (C, N).
    """
    del levels
    return torch.ones_like(weight)


def clipped(
    weight: Tensor, levels: Tensor, *, limit: float | None = None
) -> Tensor:
    """Return 1 between the outermost levels, both included, else 0.

    Courbariaux et al., 'Binarized Neural Networks', 2016, with the window
    of a learned scale, as LSQ has it (Esser et al., ICLR 2020).

    >>> clipped(torch.tensor([[-1.5, 0.2, 1.0]]), torch.tensor([[-1.0, 1.0]]))
    tensor([[0., 1., 1.]])

    Args:
        weight: (C, N).
        levels: (C, K), ascending.
        limit: Passes magnitudes up to this one instead.

    Returns:
        (C, N).
    """
    if limit is not None:
        return (weight.abs() <= limit).to(weight.dtype)
    inside = (weight >= levels[:, :1]) & (weight <= levels[:, -1:])
    return inside.to(weight.dtype)


def polynomial(weight: Tensor, levels: Tensor) -> Tensor:
    """Return ``max(0, 2 - 2 |w| / a)`` for levels from -a to a.

    The derivative of a sign that is smoothed to a piecewise parabola:
    Bi-Real Net, Liu et al., ECCV 2018, Eq. 7. Levels around another middle
    shift it there.

    >>> polynomial(torch.tensor([[-1.5, -0.5, 0.0, 1.0]]),
    ...            torch.tensor([[-1.0, 1.0]]))
    tensor([[0., 1., 2., 0.]])

    Args:
        weight: (C, N).
        levels: (C, K), ascending.

    Returns:
        (C, N), in [0, 2].
    """
    middle = (levels[:, :1] + levels[:, -1:]) / 2
    half = (levels[:, -1:] - levels[:, :1]) / 2
    steps = (weight - middle).abs() / half.clamp(min=LEAST)
    return (2 - 2 * steps).clamp(min=0)


ESTIMATORS: dict[str, Estimator] = {
    'identity': identity,
    'clipped': clipped,
    'polynomial': polynomial,
}
