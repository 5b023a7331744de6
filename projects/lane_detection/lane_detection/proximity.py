"""How close a head's locations are to the lanes that it decodes to.

``proximity = exp(-(d / w)^2 / 2)`` with d the distance to the nearest lane
that survives post-processing and w a lane's width: 1 on a lane, 0.6 at its
edge. Our own choice, for Semantic Guided Focus (Fan et al., AAAI 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .geometry import to_input

__all__ = [
    'LANE_WIDTH',
    'cells_near_lanes',
    'lines_near_lanes',
    'placed_lanes',
    'proximity',
]

# Lanes are strokes of 30 pixels in CULane's images of 1640, and TuSimple takes
# 20 pixels of 1280: beyond, lanes differ.
LANE_WIDTH = 30 / 1640


def proximity(distance: Tensor, *, width: float) -> Tensor:
    """Return 1 at distance 0, falling off to 0; both in the same unit."""
    return (-0.5 * (distance / width).square()).exp()


def placed_lanes(
    points: Sequence[Any], meta: Mapping[str, Any], *, like: Tensor
) -> list[Tensor]:
    """Return decoded lanes in fractions of the network's input.

    Args:
        points: (n, 2) each, in pixels of the original image.
        meta: ``metainfo`` of the image.
        like: Gives the device.

    Returns:
        (n, 2) float32 each.
    """
    height, width = meta['img_shape'][:2]
    size = torch.tensor([width, height], dtype=torch.float32)
    lanes = [torch.as_tensor(lane, dtype=torch.float32) for lane in points]
    return [(to_input(lane, meta) / size).to(like.device) for lane in lanes]


def cells_near_lanes(
    lanes: Sequence[Tensor], *, cells: tuple[int, int], aspect: float
) -> Tensor:
    """Return the proximity of each cell of a map.

    Args:
        lanes: From :func:`placed_lanes`.
        cells: Rows and columns of the map, (h, w).
        aspect: Height over width of the network's input.

    Returns:
        (h, w), zero without lanes. A lane is at least as wide as a cell.
    """
    high, wide = cells
    device = lanes[0].device if lanes else None
    y = (torch.arange(high, device=device) + 0.5) / high * aspect
    x = (torch.arange(wide, device=device) + 0.5) / wide
    rows, columns = torch.meshgrid(y, x, indexing='ij')
    centres = torch.stack([columns, rows], dim=-1).flatten(0, 1)
    nearest = centres.new_full((len(centres),), torch.inf)
    for lane in lanes:
        line = lane * lane.new_tensor([1.0, aspect])
        nearest = nearest.minimum(_to_polyline(centres, line))
    width = max(LANE_WIDTH, 1 / wide)
    return proximity(nearest, width=width).view(high, wide)


def lines_near_lanes(rows: Tensor, lanes: Sequence[Tensor]) -> Tensor:
    """Return the proximity of lines that are x at rows.

    Args:
        rows: x at R equally spaced rows from the top to the bottom of the
            input, (Q, R), in fractions of its width.
        lanes: From :func:`placed_lanes`.

    Returns:
        (Q,), of the mean |dx| over the rows of the nearest lane; zero without
        lanes.
    """
    heights = torch.linspace(0, 1, rows.shape[-1], device=rows.device)
    nearest = rows.new_full((len(rows),), torch.inf)
    for lane in lanes:
        order = lane[:, 1].argsort()
        x, y = lane[order].unbind(dim=-1)
        shown = (heights >= y[0]) & (heights <= y[-1])
        if not shown.any():
            continue
        places = _interpolated(heights[shown], y, x)
        apart = (rows[:, shown] - places).abs().mean(dim=-1)
        nearest = nearest.minimum(apart)
    return proximity(nearest, width=LANE_WIDTH)


def _to_polyline(points: Tensor, line: Tensor) -> Tensor:
    """Return the distance of points (P, 2) to a line of n >= 2 points."""
    start, step = line[:-1], line[1:] - line[:-1]  # S x 2
    away = points[:, None] - start  # P x S x 2
    length = step.square().sum(-1).clamp(min=1e-12)
    along = ((away * step).sum(-1) / length).clamp(0, 1)
    gap = away - along[..., None] * step
    return gap.square().sum(-1).amin(dim=-1).sqrt()


def _interpolated(at: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Return x at heights between the first and last of ascending y."""
    right = torch.searchsorted(y.contiguous(), at).clamp(1, len(y) - 1)
    left = right - 1
    part = (at - y[left]) / (y[right] - y[left]).clamp(min=1e-9)
    return torch.lerp(x[left], x[right], part.clamp(0, 1))
