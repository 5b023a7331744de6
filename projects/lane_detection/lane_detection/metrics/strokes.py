"""Wide strokes along curves, kept as one span of pixels for each row.

What is drawn is what ``cv2.line`` draws between consecutive points, pixel by
pixel: a polygon with a disc at each end. A curve that only climbs crosses a
row in one piece, so its stroke is one span in each row, and the spans of all
curves of an image follow from a table of what single steps cover, without
drawing anything. Other curves are drawn. Where the canvas cuts a slanted step,
OpenCV rounds the part that is left once more; this is not imitated, and
changes single pixels at the edge, an IoU of CULane by about 0.0001.
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
# More than any coordinate: where a step covers nothing.
NOTHING = 2**20


@dataclass(frozen=True)
class LaneDrawing:
    """How lanes are drawn.

    Attributes:
        canvas: Height and width, in pixels.
        width: Of the strokes, in pixels.
        subdivisions: Points of a spline between two points of a lane.
        step: Instead of them, their distance in pixels.

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
        """How far a step's pixels can lie from where it starts."""
        return (self.width + 1) // 2 + REACH + 1


class Stroke(NamedTuple):
    """A drawn curve.

    Attributes:
        top: First row, inside of the canvas.
        left: First pixel of each row, (R,), inside of the canvas.
        right: Behind the last pixel of each row, (R,), at least ``left``.
        area: Number of pixels.
        mask: (R, width of the canvas), bool, if the rows are not all of one
            piece; None if ``left`` and ``right`` say all.
    """

    top: int
    left: np.ndarray
    right: np.ndarray
    area: int
    mask: np.ndarray | None = None


def draw_strokes(
    curves: Sequence[np.ndarray], drawing: LaneDrawing
) -> list[Stroke | None]:
    """Draw curves, each on a canvas of its own.

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
    """Round points to pixels and leave out repetitions.

    Points in the same pixel draw the same, but the last one stays, so that
    there is something to draw.

    Returns:
        (k, 2), int32, k >= 2.
    """
    pixels = np.rint(curve).astype(np.int32)
    moved = np.ones(len(pixels), dtype=bool)
    moved[1:-1] = (pixels[1:-1] != pixels[:-2]).any(axis=1)
    return pixels[moved]


class StepTable(NamedTuple):
    """What steps of up to two pixels cover.

    Attributes:
        disc: (K,), int32: first pixel of the disc at a point in each of K
            rows around it, relative to the point; the last one lies as far
            on the other side.
        rows: (steps, 2, E): rows in which a step covers more than its two
            discs do, as index of ``disc``, on the left and on the right.
        limits: (steps, 2, E): the first pixel there and minus the last one,
            relative to the start; ``NOTHING`` in unused places.
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

    Every step covers a span in each row near it, and steps that follow each
    other share a disc, so the union of their spans in a row is a span again,
    from the least to the greatest pixel. All paths are worked on at once,
    each in rows of its own.

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
        # Rows around the path, and as many free ones behind them.
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
        x: Where the steps start, (S,).
        rows: Their rows, (S,); equal ones follow each other.
        kinds: Their numbers in the table, (S,).
        num_rows: Number of rows, T, enough for what the last step covers.
        width: Of the stroke.

    Returns:
        First and last pixel, (T - 1,) each; row r of it is r minus the margin
        of the drawing. ``NOTHING`` and ``-NOTHING`` or near where no pixel is.
    """
    table = step_table(width)
    size = len(table.disc)
    groups = np.flatnonzero(np.diff(rows, prepend=-1))
    points = np.full((2, num_rows), NOTHING, dtype=np.int32)
    points[:, rows[groups]] = np.minimum.reduceat(
        np.stack([x, -x]), groups, axis=1
    )
    # Row r and place k in the table belong to row r + k. Cut one element off
    # each line, and the k-th line moves k places to the right.
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
