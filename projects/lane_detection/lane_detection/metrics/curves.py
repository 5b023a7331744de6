"""Curves through lane points: natural cubic splines, all lanes at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.linalg import solveh_banded

__all__ = ['distinct_points', 'lane_curves']

# Beyond any image; keeps coordinates drawable.
FAR = 2.0**15


def distinct_points(lane: Any) -> np.ndarray:
    """Return the points of a lane that a curve can pass through.

    Points that are not finite, or repeat their predecessor, are dropped: they
    would make a spline's equations singular.

    Args:
        lane: (n, 2), x and y in pixels.

    Returns:
        (m, 2), float64 numbers of single precision, as the official tool
        reads them.
    """
    points = np.asarray(lane, dtype=np.float32).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)].clip(-FAR, FAR)
    if len(points) > 1:
        fresh = np.ones(len(points), dtype=bool)
        fresh[1:] = (np.diff(points, axis=0) != 0).any(axis=1)
        points = points[fresh]
    return points.astype(np.float64)


def lane_curves(
    lanes: Sequence[Any], *, subdivisions: int = 50, step: float | None = None
) -> list[np.ndarray]:
    """Return points along a curve through each lane.

    A lane of two points is a straight segment, and its two points are
    returned. Others are natural cubic splines, parametrized by the length of
    the chords: h_i = |P_{i+1} - P_i|, second derivatives M with
    M_0 = M_{n-1} = 0 and, for x and y separately::

        h_{i-1} M_{i-1} + 2 (h_{i-1} + h_i) M_i + h_i M_{i+1}
            = 6 [(P_{i+1} - P_i) / h_i - (P_i - P_{i-1}) / h_{i-1}]

    on segment i, for t in [0, h_i)::

        P_i + [(P_{i+1} - P_i) / h_i - h_i (2 M_i + M_{i+1}) / 6] t
            + M_i / 2 t^2 + (M_{i+1} - M_i) / (6 h_i) t^3

    Args:
        lanes: (n, 2) each, x and y in pixels.
        subdivisions: Points of a segment, the last point not counted.
        step: Alternatively, distance of the points in t, in pixels.

    Returns:
        (m, 2), float32, for each lane; (0, 2) for a lane of fewer than two
        distinct points.

    Raises:
        ValueError: If there are no subdivisions or the step isn't positive.
    """
    if subdivisions < 1:
        raise ValueError(f'subdivisions={subdivisions}: give at least 1')
    if step is not None and not step > 0:
        raise ValueError(f'step={step}: give a positive number of pixels')
    points = [distinct_points(lane) for lane in lanes]
    kept = [lane for lane in points if len(lane) > 1]
    curves = iter(curves_through(kept, subdivisions=subdivisions, step=step))
    return [
        next(curves) if len(lane) > 1 else np.zeros((0, 2), np.float32)
        for lane in points
    ]


def curves_through(
    lanes: list[np.ndarray], *, subdivisions: int, step: float | None
) -> list[np.ndarray]:
    """Compute :func:`lane_curves` for lanes of distinct points.

    The points of all lanes are concatenated. Between lanes the equations are
    decoupled, so that one solve and one evaluation suffice.
    """
    if not lanes:
        return []
    points = np.concatenate(lanes)  # N x 2
    sizes = np.array([len(lane) for lane in lanes])
    last = np.cumsum(sizes) - 1
    joined = np.ones(len(points) - 1, dtype=bool)  # i and i + 1, same lane
    joined[last[:-1]] = False
    chords = np.diff(points, axis=0)  # N-1 x 2
    lengths = np.where(joined, np.sqrt((chords**2).sum(axis=1)), 1.0)
    slopes = chords / lengths[:, None]
    second = second_derivatives(slopes, lengths, joined)  # N x 2

    h = lengths[:, None]
    linear = slopes - h * (2 * second[:-1] + second[1:]) / 6
    cubic = np.diff(second, axis=0) / (6 * h)
    # The last point of a lane is a one-point segment, t = 0.
    counts = np.ones(len(points), dtype=int)
    spacing = np.zeros(len(points))
    spacing[:-1] = lengths / subdivisions if step is None else step
    counts[:-1][joined] = (
        subdivisions if step is None else np.ceil(lengths[joined] / step)
    )
    counts[(last - sizes + 1)[sizes == 2]] = 1

    segment = np.repeat(np.arange(len(points)), counts)
    ends = np.cumsum(counts)
    t = np.arange(ends[-1]) - (ends - counts)[segment]
    t = (t * spacing[segment])[:, None]
    within = np.minimum(segment, len(points) - 2)
    curve = points[segment] + t * (
        linear[within] + t * (second[segment] / 2 + t * cubic[within])
    )
    return np.split(curve.astype(np.float32), ends[last[:-1]])


def second_derivatives(
    slopes: np.ndarray, lengths: np.ndarray, joined: np.ndarray
) -> np.ndarray:
    """Solve the equations of :func:`lane_curves` for M, (N, 2).

    Args:
        slopes: Chords divided by their lengths, (N - 1, 2).
        lengths: Lengths of the chords, (N - 1,).
        joined: Whether a chord belongs to a lane, (N - 1,).
    """
    count = len(lengths) + 1
    inner = np.zeros(count, dtype=bool)
    inner[1:-1] = joined[:-1] & joined[1:]
    right = np.zeros((count, 2))
    right[1:-1] = 6 * np.diff(slopes, axis=0)
    right[~inner] = 0
    bands = np.zeros((2, count))  # above the diagonal, diagonal
    bands[1] = 1
    bands[1, 1:-1] = 2 * (lengths[:-1] + lengths[1:])
    bands[1, ~inner] = 1
    # M is zero at the ends, so their columns can be left out; this keeps the
    # matrix symmetric.
    bands[0, 1:] = np.where(inner[:-1] & inner[1:], lengths, 0)
    return solveh_banded(bands, right, check_finite=False)
