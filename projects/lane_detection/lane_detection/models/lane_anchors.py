"""Straight rays from the borders of the image: LaneATT's anchors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = [
    'BOTTOM_ANGLES',
    'LEFT_ANGLES',
    'RIGHT_ANGLES',
    'border_rays',
    'ray_positions',
    'row_heights',
]

# Degrees in the unit square that the image is scaled to, from the x axis.
LEFT_ANGLES = (72, 60, 49, 39, 30, 22)
RIGHT_ANGLES = (108, 120, 131, 141, 150, 158)
BOTTOM_ANGLES = (
    165,
    150,
    141,
    131,
    120,
    108,
    100,
    90,
    80,
    72,
    60,
    49,
    39,
    30,
    15,
)


def border_rays(*, num_side: int = 72, num_bottom: int = 128) -> Tensor:
    """Return the rays of LaneATT (arXiv 2010.12035).

    Args:
        num_side: Origins on the left and on the right border, each.
        num_bottom: Origins on the lower border.

    Returns:
        (num_side * 12 + num_bottom * 15, 3): x and y of the origin, both in
        [0, 1], and the angle in radians.
    """
    sides = np.linspace(1, 0, num_side).tolist()
    bottom = np.linspace(1, 0, num_bottom).tolist()
    rays = [
        *_rays([(0.0, y) for y in sides], LEFT_ANGLES),
        *_rays([(1.0, y) for y in sides], RIGHT_ANGLES),
        *_rays([(x, 1.0) for x in bottom], BOTTOM_ANGLES),
    ]
    return torch.tensor(rays)


def row_heights(num_rows: int) -> Tensor:
    """Return y of equally spaced rows, from 1 (bottom) to 0, (num_rows,)."""
    return torch.linspace(1, 0, num_rows)


def ray_positions(rays: Tensor, heights: Tensor) -> Tensor:
    """Return x of each ray at each height, both in [0, 1] of the image.

    x = x0 + (y0 - y) / tan(angle)

    Args:
        rays: (N, 3).
        heights: (R,).

    Returns:
        (N, R); outside [0, 1] where the ray has left the image.
    """
    x, y, angle = (part[:, None] for part in rays.unbind(1))
    return x + (y - heights) / angle.tan()


def _rays(
    origins: Sequence[tuple[float, float]], angles: Sequence[int]
) -> list[tuple[float, float, float]]:
    return [
        (*origin, math.radians(angle))
        for origin in origins
        for angle in angles
    ]
