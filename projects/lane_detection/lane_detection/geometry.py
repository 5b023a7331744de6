"""Map lanes between original image and network input; assign slots.

The network sees a resized crop of the original image. This mapping is stored
in the metainfo keys ``crop`` (x0, y0, x1, y1 in original pixels) and
``img_shape`` (h, w of the input); nothing else in the project maps points.
Coordinates are continuous: pixel i covers [i, i + 1), so that a crop and a
resize are exactly ``x' = (x - x0) * w / (x1 - x0)`` and a flip ``x' = w - x``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from torch import Tensor

from .structures import LaneDataSample

__all__ = [
    'assign_slots',
    'bottom_up',
    'bottom_x',
    'existence',
    'input_lanes',
    'is_visible',
    'order_slots',
    'original_lanes',
    'resample',
    'to_input',
    'to_original',
]

Points = TypeVar('Points', np.ndarray, Tensor)
# Number of lowest points that define where a lane meets the bottom.
BOTTOM_POINTS = 6


def frame_mapping(
    metainfo: Mapping[str, Any],
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return offset (x, y) in original pixels and scale (x, y) to the input.

    Raises:
        KeyError: If the metainfo lacks the crop or the shape of the input.
        ValueError: If the crop is empty.
    """
    missing = [key for key in ('crop', 'img_shape') if key not in metainfo]
    if missing:
        raise KeyError(
            f'the metainfo has no {" and no ".join(missing)}: end the '
            'pipeline with PackLaneInputs, which records both'
        )
    left, top, right, bottom = (float(v) for v in metainfo['crop'])
    height, width = metainfo['img_shape'][:2]
    if right <= left or bottom <= top:
        raise ValueError(f'crop={tuple(metainfo["crop"])} is empty')
    scale = (float(width) / (right - left), float(height) / (bottom - top))
    return (left, top), scale


def like(values: tuple[float, float], points: Points) -> Points:
    """Return two numbers as an array or tensor like ``points``."""
    if isinstance(points, Tensor):
        return cast(Points, points.new_tensor(values))
    dtype = points.dtype if points.dtype.kind == 'f' else np.float32
    return cast(Points, np.asarray(values, dtype=dtype))


def to_input(points: Points, metainfo: Mapping[str, Any]) -> Points:
    """Map points of the original image to the network's input.

    Args:
        points: (..., 2), x and y in original pixels, floating point.
        metainfo: Holds ``crop`` and ``img_shape``.

    Returns:
        (..., 2) in pixels of the input, also outside of it.
    """
    offset, scale = frame_mapping(metainfo)
    return (points - like(offset, points)) * like(scale, points)


def to_original(points: Points, metainfo: Mapping[str, Any]) -> Points:
    """Map points of the network's input to the original image.

    Args:
        points: (..., 2), x and y in pixels of the input, floating point.
        metainfo: Holds ``crop`` and ``img_shape``.

    Returns:
        (..., 2) in original pixels.
    """
    offset, scale = frame_mapping(metainfo)
    return points / like(scale, points) + like(offset, points)


def input_lanes(data_sample: LaneDataSample) -> list[np.ndarray]:
    """Return the annotated lanes in pixels of the input.

    Args:
        data_sample: Has ``gt_lanes``, in either frame.

    Returns:
        (n, 2) float32 arrays, from the bottom upwards.
    """
    points = data_sample.gt_lanes.points
    if lane_frame(data_sample) == 'input':
        return list(points)
    return [to_input(lane, data_sample.metainfo) for lane in points]


def original_lanes(data_sample: LaneDataSample) -> list[np.ndarray]:
    """Return the annotated lanes in pixels of the original image.

    Raises:
        ValueError: If the pipeline moved them together with the image.
    """
    if lane_frame(data_sample) != 'original':
        raise ValueError(
            'the lanes were moved together with the image, so their original '
            'position is unknown: load them after LaneResize, as the test '
            'pipelines do'
        )
    return list(data_sample.gt_lanes.points)


def lane_frame(data_sample: LaneDataSample) -> str:
    """Return ``'input'`` or ``'original'`` (the default)."""
    return str(data_sample.metainfo.get('lane_frame', 'original'))


def bottom_up(points: np.ndarray) -> np.ndarray:
    """Order a polyline from the bottom upwards, without repeated points.

    Args:
        points: (n, 2), x and y in pixels, in either direction.

    Returns:
        (m, 2) float32 in the same or reverse order, without points that
        repeat their predecessor, which no spline can interpolate.
    """
    points = np.asarray(points, dtype=np.float32).reshape(-1, 2)
    if len(points) < 2:
        return points
    if points[0, 1] < points[-1, 1]:
        points = points[::-1]
    moves = np.any(points[1:] != points[:-1], axis=1)
    return np.ascontiguousarray(points[np.concatenate(([True], moves))])


def resample(points: np.ndarray, *, num_points: int) -> np.ndarray:
    """Place points at equal distances along a polyline.

    Args:
        points: (n, 2), n >= 1.
        num_points: Number of points.

    Returns:
        (num_points, 2) float32, the first and the last one kept.
    """
    if len(points) == 1:
        return np.repeat(points, num_points, axis=0).astype(np.float32)
    steps = np.hypot(*np.diff(points, axis=0).T)
    length = np.concatenate(([0.0], np.cumsum(steps)))
    at = np.linspace(0, length[-1], num_points)
    columns = [np.interp(at, length, column) for column in points.T]
    return np.stack(columns, axis=1).astype(np.float32)


def is_visible(
    points: np.ndarray, *, shape: tuple[int, int], min_length: float = 2.0
) -> bool:
    """Return whether enough of a lane lies in an image.

    Args:
        points: (n, 2), x and y in pixels.
        shape: Height and width of the image in pixels.
        min_length: Minimum length inside, in pixels.
    """
    if len(points) < 2:
        return False
    dense = resample(points, num_points=100)
    inside = ((dense >= 0) & (dense <= shape[::-1])).all(axis=1)
    steps = np.hypot(*np.diff(dense, axis=0).T)
    return bool(steps[inside[1:] & inside[:-1]].sum() >= min_length)


def bottom_x(points: np.ndarray, *, height: float) -> float:
    """Return where a lane, extended straight, meets the image's bottom.

    Args:
        points: (n, 2), n >= 1, from the bottom upwards.
        height: Row of the bottom.
    """
    x, y = points[:BOTTOM_POINTS].astype(np.float64).T
    spread = y - y.mean()
    if not np.any(spread):
        return float(x[0])
    slope = (spread * (x - x.mean())).sum() / (spread**2).sum()
    return float(x.mean() + slope * (height - y.mean()))


def assign_slots(
    lanes: Sequence[np.ndarray], *, shape: tuple[int, int], num_slots: int = 4
) -> np.ndarray:
    """Assign lanes to the fixed slots of segmentation models.

    Half of the slots are left of the image's center line and half right of
    it, at the bottom of the image, to which lanes that end above it are
    extended. The slots next to the center are filled first: with four slots,
    1 and 2 bound the car's own lane.

    Args:
        lanes: (n, 2) arrays from the bottom upwards, in pixels.
        shape: Height and width of the image in pixels.
        num_slots: Even number of slots.

    Returns:
        (L,) int64 in [0, num_slots), or -1 if a side has no free slot.

    Raises:
        ValueError: If the number of slots is odd.
    """
    if num_slots % 2:
        raise ValueError(
            f'num_slots={num_slots} must be even: half of them lie left'
        )
    slots = np.full(len(lanes), -1, dtype=np.int64)
    height, width = shape
    offsets = np.array(
        [
            bottom_x(lane, height=height) - width / 2 if len(lane) else np.inf
            for lane in lanes
        ]
    )
    half = num_slots // 2
    left = [i for i in np.argsort(-offsets) if offsets[i] < 0]
    right = [i for i in np.argsort(offsets) if 0 <= offsets[i] < np.inf]
    for rank, index in enumerate(left[:half]):
        slots[index] = half - 1 - rank
    for rank, index in enumerate(right[:half]):
        slots[index] = half + rank
    return slots


def order_slots(
    lanes: Sequence[np.ndarray], exists: Sequence[int], *, height: float
) -> np.ndarray | None:
    """Assign lanes to the slots given by a data set's flags.

    Args:
        lanes: (n, 2) arrays from the bottom upwards, in pixels.
        exists: One flag per slot, left to right.
        height: Row of the bottom of the image.

    Returns:
        (L,) int64, or None if the numbers of flags and lanes differ, so that
        the assignment is unknown.
    """
    taken = np.flatnonzero(exists)
    if len(taken) != len(lanes) or any(len(lane) == 0 for lane in lanes):
        return None
    order = np.argsort([bottom_x(lane, height=height) for lane in lanes])
    slots = np.empty(len(lanes), dtype=np.int64)
    slots[order] = taken
    return slots


def existence(slots: Any, *, num_slots: int = 4) -> np.ndarray:
    """Return which slots hold a lane, (num_slots,) float32 of 0 and 1."""
    flags = np.zeros(num_slots, dtype=np.float32)
    taken = np.asarray(slots, dtype=np.int64)
    flags[taken[(taken >= 0) & (taken < num_slots)]] = 1
    return flags
