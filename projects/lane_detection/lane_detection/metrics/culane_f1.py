"""CULane's F1: lanes as wide strokes, compared by their pixels.

Follows the benchmark's own tool step by step: natural cubic splines, strokes
of 30 pixels on a canvas of 590 x 1640, an exact one-to-one matching, and a hit
only if the IoU is strictly greater than the threshold. It is faster, since
strokes are row spans of the same pixels instead of images (see
:mod:`.strokes`), and each lane is drawn once instead of once per pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from .curves import lane_curves
from .strokes import LaneDrawing, draw_strokes, stroke_iou

__all__ = ['CULANE_CANVAS', 'count_hits', 'lane_iou', 'lane_scores']

CULANE_CANVAS = LaneDrawing().canvas


def lane_iou(
    lanes: Sequence[Any],
    others: Sequence[Any],
    *,
    drawing: LaneDrawing | None = None,
) -> np.ndarray:
    """Return the IoU of each lane with each other.

    A lane of fewer than two distinct points, or off the canvas, has IoU 0
    with every other.

    Args:
        lanes: N lanes, (n, 2) each, x and y in pixels of the canvas.
        others: M lanes in the same format.
        drawing: Settings for drawing lanes; None is CULane's.

    Returns:
        (N, M), float64.
    """
    drawing = drawing or LaneDrawing()
    curves = lane_curves(
        [*lanes, *others], subdivisions=drawing.subdivisions, step=drawing.step
    )
    strokes = draw_strokes(curves, drawing)
    iou = np.zeros((len(lanes), len(others)))
    for i, first in enumerate(strokes[: len(lanes)]):
        for j, second in enumerate(strokes[len(lanes) :]):
            if first is not None and second is not None:
                iou[i, j] = stroke_iou(first, second)
    return iou


def count_hits(
    predicted: Sequence[Any],
    truth: Sequence[Any],
    *,
    thresholds: Sequence[float] = (0.5,),
    drawing: LaneDrawing | None = None,
) -> np.ndarray:
    """Count correct, wrong and missed lanes of an image.

    The matching maximizes the sum of IoU, independently of the threshold; a
    matched pair is a hit if its IoU is strictly greater. Lanes too short to
    be drawn also count.

    Args:
        predicted: Lanes, (n, 2) each, x and y in pixels of the canvas.
        truth: True lanes in the same format.
        thresholds: IoU thresholds.
        drawing: Settings for drawing lanes; None is CULane's.

    Returns:
        (thresholds, 3), int: true positives, false positives, false
        negatives.
    """
    hits = np.zeros(len(thresholds), dtype=int)
    if len(predicted) and len(truth):
        iou = lane_iou(truth, predicted, drawing=drawing)
        matched = iou[linear_sum_assignment(iou, maximize=True)]
        hits = (matched[None] > np.asarray(thresholds)[:, None]).sum(axis=1)
    return np.stack([hits, len(predicted) - hits, len(truth) - hits], axis=1)


def lane_scores(
    true_positives: int, false_positives: int, false_negatives: int
) -> dict[str, float]:
    """Return F1, precision and recall of summed counts.

    An undefined ratio is 0 (the official tool prints -1 for the precision
    without predictions).

    >>> lane_scores(1, 1, 3)
    {'F1': 0.3333333333333333, 'precision': 0.5, 'recall': 0.25}
    """
    predicted = true_positives + false_positives
    there = true_positives + false_negatives
    # 2 P R / (P + R), also defined if P or R is not
    return {
        'F1': 2 * true_positives / max(predicted + there, 1),
        'precision': true_positives / max(predicted, 1),
        'recall': true_positives / max(there, 1),
    }
