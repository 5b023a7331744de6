"""Lanes as functions of the row: x at given y, as training targets."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import InterpolatedUnivariateSpline

__all__ = ['falling_points', 'lane_positions']

Array: TypeAlias = NDArray[np.float64]


def falling_points(
    points: NDArray[np.floating], *, min_gap: float = 0.5
) -> Array:
    """Return a lane from the bottom upwards, with one point per row.

    Args:
        points: (n, 2), x and y in pixels, in either direction.
        min_gap: Minimum distance in y of consecutive points; closer points
            are dropped, since a spline through them overshoots.

    Returns:
        (m, 2), y strictly decreasing.
    """
    ordered = np.asarray(points, dtype=np.float64).reshape(-1, 2)
    ordered = ordered[np.isfinite(ordered).all(axis=1)]
    ordered = ordered[np.argsort(-ordered[:, 1], kind='stable')]
    kept: list[Array] = []
    for point in ordered:
        if not kept or kept[-1][1] - point[1] >= min_gap:
            kept.append(point)
    return np.stack(kept) if kept else np.zeros((0, 2))


def lane_positions(
    points: NDArray[np.floating],
    rows: NDArray[np.floating],
    *,
    extend_down: bool = False,
    linear_up_to: int = 2,
) -> Array:
    """Return x of a lane at given rows, by a spline through its points.

    The spline is cubic, or of the highest degree that the points allow.

    Args:
        points: (n, 2), x and y in pixels.
        rows: (R,), y in pixels.
        extend_down: Continue below the lowest point, along the line through
            the two lowest ones.
        linear_up_to: Interpolate linearly with at most so many points.

    Returns:
        (R,), NaN in rows without the lane; all NaN for a lane of fewer than
        two rows.
    """
    lane = falling_points(points)
    rows = np.asarray(rows, dtype=np.float64)
    result = np.full(len(rows), np.nan)
    if len(lane) < 2:
        return result
    low, high = lane[-1, 1], lane[0, 1]
    degree = 1 if len(lane) <= linear_up_to else min(3, len(lane) - 1)
    spline = InterpolatedUnivariateSpline(
        lane[::-1, 1], lane[::-1, 0], k=degree
    )
    # A tolerance of 0.0005 pixels for rounding at the ends.
    inside = (rows >= low - 5e-4) & (rows <= high + 5e-4)
    result[inside] = spline(rows[inside])
    if extend_down:
        below = rows > high + 5e-4
        slope = (lane[0, 0] - lane[1, 0]) / (lane[0, 1] - lane[1, 1])
        result[below] = lane[0, 0] + slope * (rows[below] - high)
    return result
