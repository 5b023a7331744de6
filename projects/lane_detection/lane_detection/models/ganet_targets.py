"""Training targets of GANet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import input_lanes
from .heatmaps import draw_gaussian
from .resample import falling_points, lane_positions

__all__ = ['GANetTargets', 'encode_lanes', 'resample_lane']


@dataclass(kw_only=True)
class GANetTargets:
    """Targets of one image, in cells.

    Args:
        kpt_hm: (1, H, W), 1 in cells that hold a lane point.
        pts_offset: (2, H, W), dx and dy from the point to its lane's start.
        int_offset: (2, H, W), the point within its cell, in [0, 1).
        mask: (H, W), 1 where the offsets count.
        cells: Column and row of each lane's cells, (n, 2).
        samples: Points of each lane for the aggregation, (41, 2).
    """

    kpt_hm: NDArray[np.float32]
    pts_offset: NDArray[np.float32]
    int_offset: NDArray[np.float32]
    mask: NDArray[np.float32]
    cells: list[NDArray[np.int64]] = field(default_factory=list)
    samples: list[NDArray[np.float64]] = field(default_factory=list)


def encode_lanes(
    sample: Any,
    *,
    size: tuple[int, int],
    stride: int,
    num_points: int,
    radius: int,
) -> GANetTargets:
    """Draw the lanes of one image into maps.

    If two points fall into one cell, the later one wins.

    Args:
        sample: LaneDataSample.
        size: (H, W) of the maps.
        stride: Pixels of the input in a cell.
        num_points: Points of a lane.
        radius: Radius of the Gaussians, in cells.
    """
    height, width = size
    targets = GANetTargets(
        kpt_hm=np.zeros((1, height, width), np.float32),
        pts_offset=np.zeros((2, height, width), np.float32),
        int_offset=np.zeros((2, height, width), np.float32),
        mask=np.zeros((height, width), np.float32),
    )
    for points in input_lanes(sample):
        lane = np.asarray(points, dtype=np.float64) / stride
        dense = resample_lane(lane, size=size, num_points=num_points)
        if len(dense) < 2:
            continue
        cells = np.floor(dense).astype(np.int64)
        columns, rows = cells.T
        for column, row in cells:
            draw_gaussian(
                targets.kpt_hm[0], x=int(column), y=int(row), radius=radius
            )
        targets.int_offset[:, rows, columns] = (dense - cells).T
        targets.pts_offset[:, rows, columns] = (dense[0] - dense).T
        targets.mask[rows, columns] = 1
        targets.cells.append(np.unique(cells, axis=0))
        targets.samples.append(
            resample_lane(lane, size=size, num_points=41, clip=False)
        )
    return targets


def resample_lane(
    lane: NDArray[np.float64],
    *,
    size: tuple[int, int],
    num_points: int,
    clip: bool = True,
) -> NDArray[np.float64]:
    """Return points of a lane at equally spaced rows.

    Args:
        lane: (n, 2), x and y in cells.
        size: (H, W) of the map.
        num_points: Number of points before clipping.
        clip: Whether to drop points outside the map.

    Returns:
        (m, 2), from the bottom upwards; empty if the lane has fewer than two
        rows in the map.
    """
    height, width = size
    inside = (lane[:, 0] > 0) & (lane[:, 0] < width)
    lane = falling_points(lane[inside], min_gap=0.5 / 8)
    if len(lane) < 2:
        return np.zeros((0, 2))
    top, bottom = max(lane[-1, 1], 0.0), min(lane[0, 1], float(height))
    if bottom <= top:
        return np.zeros((0, 2))
    rows = np.linspace(bottom, top, num_points)
    # In pixels, since the minimum gap of the spline's points is in pixels.
    xs = lane_positions(lane * 8, rows * 8, linear_up_to=3) / 8
    points = np.stack([xs, rows], axis=-1)
    points = points[np.isfinite(xs)]
    if clip:
        low = (points >= 0).all(axis=1)
        points = points[low & (points < (width, height)).all(axis=1)]
    return points
