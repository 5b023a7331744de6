"""LSTR's curves: a lane as seen by a camera that is pitched to the road.

In fractions of the input's width and height,
``x(y) = k / (y - f)^2 + m / (y - f) + n + b y - b'`` for lower <= y <= upper,
where lower is the end near the horizon. Liu et al., WACV 2021, equation 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['CURVE_FIELDS', 'curve_points', 'curve_rows', 'curve_x']

CURVE_FIELDS = ('lower', 'upper', 'k', 'f', 'm', 'n', 'b', "b'")
# Smallest distance to the pole at y = f, as a fraction of the height.
POLE = 1e-4


def curve_x(curves: Tensor, y: Tensor) -> Tensor:
    """Return x at y, both as fractions.

    Args:
        curves: (..., 8), ``CURVE_FIELDS``.
        y: (..., P) or (P,).

    Returns:
        (..., P), finite for finite curves.
    """
    _, _, k, f, m, n, b, b_prime = curves[..., None].unbind(dim=-2)
    distance = y - f
    near = torch.where(distance < 0, -POLE, POLE).to(distance)
    distance = torch.where(distance.abs() < POLE, near, distance)
    return k / distance.square() + m / distance + n + b * y - b_prime


def curve_points(curves: Tensor, *, num_points: int) -> Tensor:
    """Return points of curves between their ends.

    Args:
        curves: (L, 8).
        num_points: Points of each curve, P.

    Returns:
        (L, P, 2), x and y as fractions, at equal steps of y from the upper
        limit to the lower one, that is from the bottom of the image upwards.
        Curves whose limits are in the wrong order have x = nan.
    """
    lower, upper = curves[:, :2].clamp(0, 1)[..., None].unbind(dim=1)  # L x 1
    steps = torch.linspace(0, 1, num_points, device=curves.device)
    y = upper + (lower - upper) * steps.to(curves)
    x = curve_x(curves, y).masked_fill(lower >= upper, float('nan'))
    return torch.stack([x, y], dim=-1)


def curve_rows(curves: Tensor, *, num_rows: int) -> Tensor:
    """Return x at fixed rows, with gradient.

    Beyond its ends a lane goes on vertically, so that a moved end shows
    where the lane is slanted.

    Args:
        curves: (..., 8).
        num_rows: Rows from the top to the bottom of the image, R.

    Returns:
        (..., R), in fractions of the input's width, cut off one width to the
        left and to the right of the image.
    """
    rows = torch.linspace(0, 1, num_rows, device=curves.device)
    lower, upper = curves[..., :2].clamp(0, 1)[..., None].unbind(dim=-2)
    y = torch.maximum(torch.minimum(rows.to(curves), upper), lower)
    return curve_x(curves, y).clamp(-1, 2)
