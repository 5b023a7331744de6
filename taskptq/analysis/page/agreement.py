"""Where a quantized model and its float model disagree on an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskptq.analysis.page.predictions import Box, Line, Prediction

__all__ = ['Agreement', 'box_overlap', 'compare', 'line_distance']

MIN_OVERLAP = 0.5
# Mean distance of two polylines that are the same one, as a share of the
# image's diagonal.
MAX_DISTANCE = 0.015
POINTS = 32


@dataclass(kw_only=True)
class Agreement:
    """How two models agree on one image.

    Args:
        matched_boxes: (index in float, index in quantized, overlap).
        lost_boxes: Indices of float boxes that the quantized model misses.
        new_boxes: Indices of boxes that only the quantized model finds.
        matched_lines: (index in float, index in quantized, distance in
            pixels).
        lost_lines: As for boxes.
        new_lines: As for boxes.
        changed: (H, W), whether a pixel has another class; None without.
        score: Disagreement in [0, 1]: the confidence of what has no
            counterpart over that of all, or the share of changed pixels.
    """

    matched_boxes: list[tuple[int, int, float]] = field(default_factory=list)
    lost_boxes: list[int] = field(default_factory=list)
    new_boxes: list[int] = field(default_factory=list)
    matched_lines: list[tuple[int, int, float]] = field(default_factory=list)
    lost_lines: list[int] = field(default_factory=list)
    new_lines: list[int] = field(default_factory=list)
    changed: NDArray[np.bool_] | None = None
    score: float = 0.0

    def sentence(self) -> str:
        """Return the outcome in words.

        >>> Agreement(matched_boxes=[(0, 0, 0.9)], lost_boxes=[1]).sentence()
        '1 agrees, 1 lost'
        """
        if self.changed is not None:
            share = float(self.changed.mean())
            return f'{share:.1%} of the pixels have another class'
        agreed = len(self.matched_boxes) + len(self.matched_lines)
        lost = len(self.lost_boxes) + len(self.lost_lines)
        new = len(self.new_boxes) + len(self.new_lines)
        if not agreed + lost + new:
            return 'nothing found, by either'
        parts = [f'{agreed} agree{"s" * (agreed == 1)}']
        parts += [f'{lost} lost'] if lost else []
        parts += [f'{new} new'] if new else []
        return ', '.join(parts)


def compare(
    clean: Prediction,
    noisy: Prediction,
    *,
    score: float,
    size: tuple[int, int],
) -> Agreement:
    """Compare what two models found in one image.

    Both predictions hold objects down to half of ``score``, so that an object
    on the edge of the threshold is not a loss: it only counts without a
    counterpart at half of the score.

    Args:
        clean: Of the float model.
        noisy: Of the quantized model.
        score: Least confidence of what is looked for.
        size: Height and width of the image, in pixels.
    """
    found = Agreement()
    found.matched_boxes, found.lost_boxes, found.new_boxes = _match(
        clean.boxes,
        noisy.boxes,
        score=score,
        closeness=lambda a, b: _box_closeness(a, b),
    )
    allowed = MAX_DISTANCE * math.hypot(*size)
    found.matched_lines, found.lost_lines, found.new_lines = _match(
        clean.lines,
        noisy.lines,
        score=score,
        closeness=lambda a, b: _line_closeness(a, b, allowed),
    )
    found.matched_lines = [(i, j, -c) for i, j, c in found.matched_lines]
    found.changed = _changed(clean.classes, noisy.classes)
    found.score = _score(found, clean, noisy, least=score)
    return found


def _changed(
    clean: NDArray[np.int64] | None, noisy: NDArray[np.int64] | None
) -> NDArray[np.bool_] | None:
    if clean is None or noisy is None or clean.shape != noisy.shape:
        return None
    return np.asarray(clean != noisy)


def _match(
    clean: Sequence[Any],
    noisy: Sequence[Any],
    *,
    score: float,
    closeness: Callable[[Any, Any], float | None],
) -> tuple[list[tuple[int, int, float]], list[int], list[int]]:
    """Pair objects, the closest first; at least one is confident enough."""
    pairs = [
        (close, i, j)
        for i, a in enumerate(clean)
        for j, b in enumerate(noisy)
        if max(a.score, b.score) >= score
        and (close := closeness(a, b)) is not None
    ]
    matched: list[tuple[int, int, float]] = []
    used_clean: set[int] = set()
    used_noisy: set[int] = set()
    for close, i, j in sorted(pairs, reverse=True):
        if i not in used_clean and j not in used_noisy:
            matched.append((i, j, close))
            used_clean.add(i)
            used_noisy.add(j)
    lost = [
        i
        for i, a in enumerate(clean)
        if a.score >= score and i not in used_clean
    ]
    new = [
        j
        for j, b in enumerate(noisy)
        if b.score >= score and j not in used_noisy
    ]
    return sorted(matched), lost, new


def box_overlap(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes.

    >>> box = Box(corners=(0, 0, 10, 10), label=0, score=1)
    >>> box_overlap(box, Box(corners=(5, 0, 15, 10), label=0, score=1))
    0.3333333333333333
    """
    left, top = (
        max(a.corners[0], b.corners[0]),
        max(a.corners[1], b.corners[1]),
    )
    right = min(a.corners[2], b.corners[2])
    bottom = min(a.corners[3], b.corners[3])
    shared = max(0.0, right - left) * max(0.0, bottom - top)
    union = _area(a) + _area(b) - shared
    return shared / union if union > 0 else 0.0


def _area(box: Box) -> float:
    x1, y1, x2, y2 = box.corners
    return max(0.0, x2 - x1) * max(0.0, y2 - y1)


def _box_closeness(a: Box, b: Box) -> float | None:
    if a.label != b.label:
        return None
    overlap = box_overlap(a, b)
    return overlap if overlap >= MIN_OVERLAP else None


def line_distance(a: Line, b: Line) -> float:
    """Return the mean distance of two polylines, in pixels.

    The mean over both of the distance of evenly spaced points from the
    nearest such point of the other.
    """
    p, q = _resampled(a.points), _resampled(b.points)
    distances = np.hypot(*(p[:, None] - q[None]).transpose(2, 0, 1))
    return float((distances.min(axis=0) + distances.min(axis=1)).mean() / 2)


def _resampled(points: NDArray[np.float64]) -> NDArray[np.float64]:
    steps = np.hypot(*np.diff(points, axis=0).T)
    length = np.concatenate([[0.0], np.cumsum(steps)])
    places = np.linspace(0, length[-1], POINTS)
    return np.stack(
        [np.interp(places, length, points[:, axis]) for axis in (0, 1)], axis=1
    )


def _line_closeness(a: Line, b: Line, allowed: float) -> float | None:
    distance = line_distance(a, b)
    return -distance if distance <= allowed else None


def _score(
    found: Agreement, clean: Prediction, noisy: Prediction, *, least: float
) -> float:
    if found.changed is not None:
        return float(found.changed.mean())
    lonely = [clean.boxes[i].score for i in found.lost_boxes]
    lonely += [noisy.boxes[j].score for j in found.new_boxes]
    lonely += [clean.lines[i].score for i in found.lost_lines]
    lonely += [noisy.lines[j].score for j in found.new_lines]
    scores = [
        *(box.score for side in (clean, noisy) for box in side.boxes),
        *(line.score for side in (clean, noisy) for line in side.lines),
    ]
    every = sum(score for score in scores if score >= least)
    return sum(lonely) / every if every else 0.0
