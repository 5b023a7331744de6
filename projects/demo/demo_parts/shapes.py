"""Workshop parts as soft masks: bolts, nuts and washers.

A part is drawn in its own window of the image, which is most of the speed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

CLASSES = ('bolt', 'nut', 'washer')
# Masks are drawn so many times larger and then averaged down.
OVERSAMPLING = 4
# Rows and columns of an image.
Window = tuple[slice, slice]


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


def window_around(
    center: tuple[float, float], *, radius: float, width: int, height: int
) -> Window:
    """Return the part of an image within a radius of a point.

    Args:
        center: x, y in pixels.
        radius: In pixels, along x and along y.
        width: Of the image, in pixels.
        height: Of the image, in pixels.
    """
    x, y = center
    rows = slice(max(int(y - radius), 0), min(int(y + radius) + 1, height))
    columns = slice(max(int(x - radius), 0), min(int(x + radius) + 1, width))
    return rows, columns


def polygon_mask(points: np.ndarray, *, window: Window) -> np.ndarray:
    """Draw a convex polygon.

    Args:
        points: (N, 2), x, y in pixels of the image.
        window: What to draw of the image.

    Returns:
        Coverage of each pixel of the window, float32 in [0, 1].
    """
    canvas = _canvas(window)
    cv2.fillConvexPoly(canvas, _to_canvas(points, window), 255)
    return _averaged(canvas)


def part_mask(kind: str, place: Placement, *, window: Window) -> np.ndarray:
    """Draw one part.

    Args:
        kind: One of ``CLASSES``.
        place: Where it lies.
        window: What to draw of the image.

    Returns:
        Coverage of each pixel of the window, float32 in [0, 1].
    """
    canvas = _canvas(window)
    DRAW[kind](canvas, place, window)
    return _averaged(canvas)


def shading(kind: str, place: Placement, *, window: Window) -> np.ndarray:
    """Return the brightness factor of each pixel of a part.

    A bolt has a thread, a nut six facets, a washer is flat.
    """
    if kind == 'washer':
        return np.ones(_shape(window), dtype=np.float32)
    rows, columns = window
    y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    x = np.arange(columns.start, columns.stop, dtype=np.float32)[None]
    x, y = x - np.float32(place.center[0]), y - np.float32(place.center[1])
    if kind == 'nut':
        sector = np.pi / 3
        facet = np.floor((np.arctan2(y, x) - place.angle) / sector)
        return 1 + 0.3 * np.cos(facet * sector + place.angle)
    along = x * np.cos(place.angle) + y * np.sin(place.angle)
    # The head, at the negative end, has no thread.
    thread = 1 + 0.18 * np.sin(2 * np.pi * along / 3.0)
    return np.where(along > -0.5 * place.size, thread, 1)


def _shape(window: Window) -> tuple[int, int]:
    rows, columns = window
    return rows.stop - rows.start, columns.stop - columns.start


def _canvas(window: Window) -> np.ndarray:
    height, width = _shape(window)
    return np.zeros(
        (height * OVERSAMPLING, width * OVERSAMPLING), dtype=np.uint8
    )


def _averaged(canvas: np.ndarray) -> np.ndarray:
    height, width = canvas.shape
    size = (width // OVERSAMPLING, height // OVERSAMPLING)
    small = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255


def _to_canvas(points: np.ndarray, window: Window) -> np.ndarray:
    rows, columns = window
    moved = points - np.array([columns.start, rows.start])
    return np.round(moved * OVERSAMPLING).astype(np.int32)


def _polygon(
    points: np.ndarray, place: Placement, window: Window
) -> np.ndarray:
    """Rotate and shift points of the part's own frame; for OpenCV."""
    cos, sin = np.cos(place.angle), np.sin(place.angle)
    rotation = np.array([[cos, sin], [-sin, cos]])
    moved = points * place.size @ rotation + np.array(place.center)
    return _to_canvas(moved, window)


def _disc(
    canvas: np.ndarray,
    place: Placement,
    window: Window,
    *,
    radius: float,
    value: int,
) -> None:
    x, y = _to_canvas(np.array(place.center), window).tolist()
    cv2.circle(canvas, (x, y), round(radius * OVERSAMPLING), value, -1)


def _draw_nut(canvas: np.ndarray, place: Placement, window: Window) -> None:
    angles = np.arange(6) * np.pi / 3
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cv2.fillConvexPoly(canvas, _polygon(points, place, window), 255)
    _disc(canvas, place, window, radius=place.size * place.ratio, value=0)


def _draw_washer(canvas: np.ndarray, place: Placement, window: Window) -> None:
    _disc(canvas, place, window, radius=place.size, value=255)
    _disc(canvas, place, window, radius=place.size * place.ratio, value=0)


def _draw_bolt(canvas: np.ndarray, place: Placement, window: Window) -> None:
    half_head, half_shaft = place.ratio, 0.55 * place.ratio
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
        cv2.fillConvexPoly(canvas, _polygon(points, place, window), 255)


DRAW: dict[str, Callable[[np.ndarray, Placement, Window], None]] = {
    'bolt': _draw_bolt,
    'nut': _draw_nut,
    'washer': _draw_washer,
}
