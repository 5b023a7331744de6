"""Wide strokes along curves, stored as one span of pixels per row.

The pixels are exactly those of ``cv2.line`` between consecutive points: a
polygon with a disc at each end. A curve that only climbs crosses each row
once, so its stroke is one span per row, and the spans of all curves of an
image follow from a table of the pixels of single steps, without drawing. Other
curves are drawn. Where the canvas cuts a slanted step, OpenCV rounds the
remaining part again; this is not reproduced and changes single pixels at the
edge, and CULane's IoU by about 0.0001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

__all__ = ['LaneDrawing', 'Stroke', 'draw_strokes', 'stroke_iou']

# Longest step of the table, in pixels along x and y.
REACH = 2
STEPS = 2 * REACH + 1
# Exceeds any coordinate; marks rows that a step does not cover.
NOTHING = 2**20


@dataclass(frozen=True)
class LaneDrawing:
    """Settings for drawing lanes.

    Attributes:
        canvas: Height and width, in pixels.
        width: Width of the strokes, in pixels.
        subdivisions: Points of a spline between two points of a lane.
        step: Alternatively, their distance in pixels.

    Raises:
        ValueError: If canvas or width is not positive.
    """

    canvas: tuple[int, int] = (590, 1640)
    width: int = 30
    subdivisions: int = 50
    step: float | None = None

    def __post_init__(self) -> None:
        if len(self.canvas) != 2 or min(self.canvas) < 1 or self.width < 2:
            raise ValueError(
                f'canvas={self.canvas}, width={self.width}: give (height, '
                'width) of the canvas and the width of a stroke, at least 2, '
                'in pixels'
            )

    @property
    def margin(self) -> int:
        """Maximum distance of a step's pixels from its start."""
        return (self.width + 1) // 2 + REACH + 1


class Stroke(NamedTuple):
    """A drawn curve.

    Attributes:
        top: First row, inside the canvas.
        left: First pixel of each row, (R,), inside the canvas.
        right: One past the last pixel of each row, (R,), at least ``left``.
        area: Number of pixels.
        mask: (R, width of the canvas), bool, if some row is not contiguous;
            None if ``left`` and ``right`` suffice.
    """

    top: int
    left: np.ndarray
    right: np.ndarray
    area: int
    mask: np.ndarray | None = None


def draw_strokes(
    curves: Sequence[np.ndarray], drawing: LaneDrawing
) -> list[Stroke | None]:
    """Draw each curve on a separate canvas.

    Args:
        curves: (m, 2) each, x and y in pixels.
        drawing: Canvas and width.

    Returns:
        The strokes; None for fewer than two points or no pixel on the canvas.
    """
    strokes: list[Stroke | None] = [None] * len(curves)
    climbing: dict[int, np.ndarray] = {}
    for number, curve in enumerate(curves):
        if len(curve) < 2:
            continue
        path = pixel_path(curve)
        steps = np.diff(path, axis=0)
        if np.abs(steps).max() <= REACH and (
            (steps[:, 1] <= 0).all() or (steps[:, 1] >= 0).all()
        ):
            climbing[number] = path
        else:
            strokes[number] = draw_path(path, drawing)
    found = climbing_strokes(list(climbing.values()), drawing)
    for number, stroke in zip(climbing, found, strict=True):
        strokes[number] = stroke
    return strokes


def pixel_path(curve: np.ndarray) -> np.ndarray:
    """Round points to pixels and drop repetitions.

    Points in the same pixel draw the same, but the last one is kept, so that
    there is something to draw.

    Returns:
        (k, 2), int32, k >= 2.
    """
    pixels = np.rint(curve).astype(np.int32)
    moved = np.ones(len(pixels), dtype=bool)
    moved[1:-1] = (pixels[1:-1] != pixels[:-2]).any(axis=1)
    return pixels[moved]


class StepTable(NamedTuple):
    """Pixels covered by steps of up to two pixels.

    Attributes:
        disc: (K,), int32: first pixel of the disc at a point in each of K
            rows around it, relative to the point; the last pixel is at the
            same distance on the other side.
        rows: (steps, 2, E): rows in which a step covers more than its two
            discs, as index of ``disc``, on the left and on the right.
        limits: (steps, 2, E): the first pixel there and minus the last one,
            relative to the start; ``NOTHING`` in unused entries.
    """

    disc: np.ndarray
    rows: np.ndarray
    limits: np.ndarray


@lru_cache(maxsize=16)
def step_table(width: int) -> StepTable:
    """Return the table for strokes of a width.

    The step (dx, dy) has number ``STEPS * (dy + REACH) + dx + REACH``.
    """
    margin = LaneDrawing(width=width).margin
    limits = np.full((STEPS**2, 2, 2 * margin + 1), NOTHING, dtype=np.int32)
    steps = np.stack(np.divmod(np.arange(STEPS**2), STEPS), axis=1) - REACH
    for spans, (dy, dx) in zip(limits, steps.tolist(), strict=True):
        image = np.zeros((2 * margin + 1, 2 * margin + 1), dtype=np.uint8)
        cv2.line(image, (margin, margin), (margin + dx, margin + dy), 1, width)
        there = image.any(axis=1)
        spans[0, there] = image[there].argmax(axis=1) - margin
        spans[1, there] = image[there, ::-1].argmax(axis=1) - margin
    disc = limits[STEPS**2 // 2]
    found: list[list[np.ndarray]] = []
    for spans, (dy, dx) in zip(limits, steps.tolist(), strict=True):
        discs = np.minimum(
            disc, np.roll(disc, dy, axis=1) + np.array([[dx], [-dx]])
        )
        found.append([np.flatnonzero(side) for side in spans < discs])
    most = max(len(rows) for sides in found for rows in sides)
    table = StepTable(
        disc[0],
        np.zeros((STEPS**2, 2, most), dtype=np.int32),
        np.full((STEPS**2, 2, most), NOTHING, dtype=np.int32),
    )
    for number, sides in enumerate(found):
        for side, rows in enumerate(sides):
            table.rows[number, side, : len(rows)] = rows
            table.limits[number, side, : len(rows)] = limits[
                number, side, rows
            ]
    return table


def climbing_strokes(
    paths: list[np.ndarray], drawing: LaneDrawing
) -> list[Stroke | None]:
    """Draw paths of short steps that never turn back in y.

    Every step covers a span in each row near it, and consecutive steps share
    a disc, so the union of their spans in a row is again a span, from the
    first to the last pixel. All paths are processed at once, each in its own
    rows.

    Args:
        paths: (k, 2) each, int, k >= 2.
        drawing: Canvas and width.
    """
    height, margin = drawing.canvas[0], drawing.margin
    strokes: list[Stroke | None] = [None] * len(paths)
    parts: list[np.ndarray] = []  # x, row, number of the step, 3 x k each
    blocks, base = [], 0
    for number, path in enumerate(paths):
        near = (path[:, 1] > -margin) & (path[:, 1] < height + margin)
        if not near.any():
            continue
        steps = np.diff(path, axis=0, append=path[-1:])[near] + REACH
        x, y = path[near].T
        lowest = int(y.min())
        parts.append(
            np.stack([x, y - lowest + base, STEPS * steps[:, 1] + steps[:, 0]])
        )
        blocks.append((number, lowest - margin, base))
        # Rows around the path, and as many free rows after them.
        base += int(y.max()) - lowest + 4 * margin + 1
    if not blocks:
        return strokes
    low, high = row_limits(
        *np.concatenate(parts, axis=1), num_rows=base, width=drawing.width
    )
    ends = [first for _, _, first in blocks[1:]] + [base - 1]
    for (number, top, first), end in zip(blocks, ends, strict=True):
        strokes[number] = clipped(
            top, low[first:end], high[first:end] + 1, drawing.canvas
        )
    return strokes


def row_limits(
    x: np.ndarray,
    rows: np.ndarray,
    kinds: np.ndarray,
    *,
    num_rows: int,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and last pixel that steps cover in each row.

    Args:
        x: Starts of the steps, (S,).
        rows: Rows of the starts, (S,); equal ones are adjacent.
        kinds: Indices of the steps in the table, (S,).
        num_rows: Number of rows, T, including those of the last step.
        width: Width of the stroke in pixels.

    Returns:
        First and last pixel, (T - 1,) each; row r is r minus the drawing's
        margin. About ``NOTHING`` and ``-NOTHING`` in rows without pixels.
    """
    table = step_table(width)
    size = len(table.disc)
    groups = np.flatnonzero(np.diff(rows, prepend=-1))
    points = np.full((2, num_rows), NOTHING, dtype=np.int32)
    points[:, rows[groups]] = np.minimum.reduceat(
        np.stack([x, -x]), groups, axis=1
    )
    # Row r and index k in the table belong to row r + k. Dropping one element
    # per line moves the k-th line k places to the right.
    lines = points[:, None] + table.disc[:, None]  # 2 x K x T
    moved = lines.reshape(2, -1)[:, : size * (num_rows - 1)]
    least = moved.reshape(2, size, num_rows - 1).min(axis=1)
    for side, sign in enumerate((1, -1)):
        limits = table.limits[kinds, side]  # S x E
        step, place = np.nonzero(limits < NOTHING)
        np.minimum.at(
            least[side],
            rows[step] + table.rows[kinds[step], side, place],
            sign * x[step] + limits[step, place],
        )
    return least[0], -least[1]


def clipped(
    top: int, left: np.ndarray, right: np.ndarray, canvas: tuple[int, int]
) -> Stroke | None:
    """Return spans as a stroke inside the canvas; None without any pixel."""
    height, width = canvas
    first, last = max(top, 0), min(top + len(left), height)
    if first >= last:
        return None
    left = left[first - top : last - top].clip(0, width)
    right = np.maximum(right[first - top : last - top].clip(0, width), left)
    area = int((right - left).sum())
    return Stroke(first, left, right, area) if area else None


def draw_path(path: np.ndarray, drawing: LaneDrawing) -> Stroke | None:
    """Draw any path, in its bounding box.

    Args:
        path: (k, 2), int, k >= 2.
        drawing: Canvas and width.
    """
    height, width = drawing.canvas
    margin = drawing.margin
    left, top = np.maximum(path.min(axis=0) - margin, 0).tolist()
    right, bottom = np.minimum(
        path.max(axis=0) + margin + 1, (width, height)
    ).tolist()
    if left >= right or top >= bottom:
        return None
    mask = np.zeros((bottom - top, right - left), dtype=np.uint8)
    cv2.polylines(
        mask,
        [path - np.int32([left, top])],
        isClosed=False,
        color=1,
        thickness=drawing.width,
    )
    count = mask.sum(axis=1, dtype=np.int32)
    area = int(count.sum())
    if area == 0:
        return None
    first = mask.argmax(axis=1)
    last = right - left - mask[:, ::-1].argmax(axis=1)
    last[count == 0] = 0
    if (last - first == count).all():
        return Stroke(top, first + left, last + left, area)
    whole = np.zeros((bottom - top, width), dtype=bool)
    whole[:, left:right] = mask
    return Stroke(top, first, last, area, whole)


def stroke_iou(first: Stroke, second: Stroke) -> float:
    """Return the IoU of two strokes."""
    top = max(first.top, second.top)
    bottom = min(first.top + len(first.left), second.top + len(second.left))
    if top >= bottom:
        return 0.0
    one = slice(top - first.top, bottom - first.top)
    two = slice(top - second.top, bottom - second.top)
    if first.mask is None and second.mask is None:
        spans = np.minimum(first.right[one], second.right[two]) - np.maximum(
            first.left[one], second.left[two]
        )
        shared = int(spans[spans > 0].sum())
    else:
        shared = int(
            np.count_nonzero(
                covered(first, one, second) & covered(second, two, first)
            )
        )
    return shared / (first.area + second.area - shared)


def covered(stroke: Stroke, rows: slice, other: Stroke) -> np.ndarray:
    """Return rows of a stroke as a mask, as wide as the other's or its own."""
    if stroke.mask is not None:
        return stroke.mask[rows]
    assert other.mask is not None
    x = np.arange(other.mask.shape[1])
    return (x >= stroke.left[rows, None]) & (x < stroke.right[rows, None])
