"""Workshop parts as soft masks: bolts, nuts and washers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ('bolt', 'nut', 'washer')
# Masks are drawn so many times larger and then averaged down.
OVERSAMPLING = 4


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a part lies.

    Args:
        center: x, y in pixels.
        size: Radius of a nut or washer, half the length of a bolt, in pixels.
        angle: Rotation in radians.
        ratio: Hole radius of a nut or washer over ``size``; width of a bolt's
            head over its length.
    """

    center: tuple[float, float]
    size: float
    angle: float
    ratio: float


def part_mask(
    kind: str, place: Placement, *, width: int, height: int
) -> np.ndarray:
    """Draw one part.

    Args:
        kind: One of ``CLASSES``.
        place: Where it lies.
        width: Of the image, in pixels.
        height: Of the image, in pixels.

    Returns:
        Coverage of each pixel, (height, width), float32 in [0, 1].
    """
    canvas = np.zeros(
        (height * OVERSAMPLING, width * OVERSAMPLING), dtype=np.uint8
    )
    DRAW[kind](canvas, place)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def thread_pattern(place: Placement, *, width: int, height: int) -> np.ndarray:
    """Return the brightness factor of a bolt's thread, (height, width)."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    along = (x - place.center[0]) * np.cos(place.angle) + (
        y - place.center[1]
    ) * np.sin(place.angle)
    waves = np.sin(2 * np.pi * along / 3.0)
    # The head, at the negative end, has no thread.
    return np.where(along > -0.5 * place.size, 1 + 0.18 * waves, 1)


def _polygon(points: np.ndarray, place: Placement) -> np.ndarray:
    """Rotate and shift points of the part's own frame; for OpenCV."""
    cos, sin = np.cos(place.angle), np.sin(place.angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    moved = points * place.size @ rotation + np.array(place.center)
    return np.round(moved * OVERSAMPLING).astype(np.int32)


def _hole(canvas: np.ndarray, place: Placement, value: int) -> None:
    center = np.round(np.array(place.center) * OVERSAMPLING).astype(int)
    radius = round(place.size * place.ratio * OVERSAMPLING)
    cv2.circle(canvas, tuple(int(v) for v in center), radius, value, -1)


def _draw_nut(canvas: np.ndarray, place: Placement) -> None:
    angles = np.arange(6) * np.pi / 3
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillConvexPoly(canvas, _polygon(points, place), 255)
    _hole(canvas, place, 0)


def _draw_washer(canvas: np.ndarray, place: Placement) -> None:
    center = np.round(np.array(place.center) * OVERSAMPLING).astype(int)
    radius = round(place.size * OVERSAMPLING)
    cv2.circle(canvas, tuple(int(v) for v in center), radius, 255, -1)
    _hole(canvas, place, 0)


def _draw_bolt(canvas: np.ndarray, place: Placement) -> None:
    half_head, half_shaft = place.ratio, 0.5 * place.ratio
    head = np.array(
        [
            [-1.0, -half_head],
            [-0.5, -half_head],
            [-0.5, half_head],
            [-1.0, half_head],
        ]
    )
    shaft = np.array(
        [
            [-0.5, -half_shaft],
            [0.9, -half_shaft],
            [1.0, 0.0],
            [0.9, half_shaft],
            [-0.5, half_shaft],
        ]
    )
    for points in (head, shaft):
        cv2.fillConvexPoly(canvas, _polygon(points, place), 255)


DRAW: dict[str, Callable[[np.ndarray, Placement], None]] = {
    'bolt': _draw_bolt,
    'nut': _draw_nut,
    'washer': _draw_washer,
}
