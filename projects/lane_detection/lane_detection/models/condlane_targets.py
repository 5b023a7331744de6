"""Training targets of CondLaneNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import input_lanes
from .heatmaps import draw_gaussian
from .resample import falling_points, lane_positions

__all__ = ['CondLaneTargets', 'encode_lanes']


@dataclass(frozen=True, kw_only=True)
class CondLaneTargets:
    """Targets of one image.

    Args:
        heatmap: (h, w), 1 at the start of each lane.
        seeds: (L,), flat cell of each start.
        xs: (L, H), column at the middle of each row, in cells; NaN in rows
            without the lane.
    """

    heatmap: NDArray[np.float32]
    seeds: NDArray[np.int64]
    xs: NDArray[np.float32]


def encode_lanes(
    sample: Any,
    *,
    size: tuple[int, int],
    stride: int,
    seed_size: tuple[int, int],
    seed_stride: int,
    radius: int,
) -> CondLaneTargets:
    """Return the rows and the starts of an image's lanes.

    The Gaussian of a start reaches at most half way to the next one. Of two
    lanes that start in the same cell, the second is dropped, since a cell has
    only one set of parameters.

    Args:
        sample: LaneDataSample.
        size: (H, W) of the masks.
        stride: Stride of the masks.
        seed_size: (h, w) of the heat map.
        seed_stride: Stride of the heat map.
        radius: Radius of a Gaussian, in cells of the heat map.
    """
    rows = (np.arange(size[0]) + 0.5) * stride
    positions, starts = [], []
    for points in input_lanes(sample):
        lane = falling_points(np.asarray(points))
        xs = lane_positions(lane, rows)
        xs[~((xs >= 0) & (xs < size[1] * stride))] = np.nan
        start = _start(lane, size=size, stride=stride)
        if start is None or np.isfinite(xs).sum() < 2:
            continue
        cell = np.clip(
            np.floor(start / seed_stride).astype(np.int64),
            0,
            (seed_size[1] - 1, seed_size[0] - 1),
        )
        if not any((cell == other).all() for other in starts):
            starts.append(cell)
            positions.append(xs / stride)
    heatmap = np.zeros(seed_size, np.float32)
    for cell in starts:
        draw_gaussian(
            heatmap,
            x=int(cell[0]),
            y=int(cell[1]),
            radius=_radius(cell, starts, radius),
        )
    cells = np.array(starts, dtype=np.int64).reshape(-1, 2)
    return CondLaneTargets(
        heatmap=heatmap,
        seeds=cells[:, 1] * seed_size[1] + cells[:, 0],
        xs=np.array(positions, dtype=np.float32).reshape(-1, size[0]),
    )


def _start(
    lane: NDArray[np.float64], *, size: tuple[int, int], stride: int
) -> NDArray[np.float64] | None:
    """Return the lowest point of a lane inside the image, in pixels."""
    limit = np.array([size[1], size[0]]) * stride
    inside = ((lane >= 0) & (lane <= limit)).all(axis=1)
    return lane[inside.argmax()] if inside.any() else None


def _radius(
    cell: NDArray[np.int64], starts: list[NDArray[np.int64]], radius: int
) -> int:
    gaps = [
        float(np.hypot(*(cell - other)))
        for other in starts
        if (cell != other).any()
    ]
    return max(1, int(min([radius, *(gap / 2 for gap in gaps)])))
