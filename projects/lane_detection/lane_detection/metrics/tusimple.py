"""TuSimple's accuracy, false positives and false negatives of an image.

Follows the benchmark's own script step by step, including its oddities: a
prediction may match several lanes, so false positives can be negative, and
with five or more lanes the worst one is forgiven.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ['TuSimpleScore', 'tusimple_f1', 'tusimple_score']

# x distance at which a row of a vertical lane is wrong, in 1280 x 720 pixels
PIXEL_THRESHOLD = 20.0
# share of correct rows of a found lane
LANE_THRESHOLD = 0.85
MAX_RUN_TIME = 200.0
MAX_ADDED = 2
COUNTED_LANES = 4
ABSENT = -100.0


class TuSimpleScore(NamedTuple):
    """Scores of an image.

    Attributes:
        accuracy: Mean share of correct rows, in [0, 1].
        fp: Share of predicted lanes without a match.
        fn: Share of true lanes that were not found.
    """

    accuracy: float
    fp: float
    fn: float


def tusimple_score(
    predicted: Sequence[Any],
    truth: Sequence[Any],
    *,
    h_samples: Sequence[float],
    run_time: float = 0.0,
) -> TuSimpleScore:
    """Score the lanes of an image.

    Args:
        predicted: Lanes, x at each of the rows in pixels, negative where
            absent.
        truth: True lanes in the same format.
        h_samples: y of the rows, R, in pixels.
        run_time: Time of the prediction, in milliseconds.

    Raises:
        ValueError: If a lane doesn't have one x for each row.
    """
    for name, lanes in (('predicted', predicted), ('truth', truth)):
        for number, lane in enumerate(lanes):
            if len(lane) != len(h_samples):
                raise ValueError(
                    f'{name} lane {number} has {len(lane)} rows, but '
                    f'h_samples {len(h_samples)}: give one x for each row, '
                    'negative where the lane is absent'
                )
    if run_time > MAX_RUN_TIME or len(predicted) > len(truth) + MAX_ADDED:
        return TuSimpleScore(0.0, 0.0, 1.0)
    found = np.array(predicted, dtype=float).reshape(-1, len(h_samples))
    there = np.array(truth, dtype=float).reshape(-1, len(h_samples))
    best = best_accuracies(found, there, np.asarray(h_samples, dtype=float))
    matched = int((best >= LANE_THRESHOLD).sum())
    missed = len(there) - matched
    total = float(best.sum())
    if len(there) > COUNTED_LANES:
        total -= float(best.min())
        missed -= missed > 0
    counted = max(min(len(there), COUNTED_LANES), 1)
    return TuSimpleScore(
        accuracy=total / counted,
        fp=(len(found) - matched) / len(found) if len(found) else 0.0,
        fn=missed / counted,
    )


def best_accuracies(
    found: np.ndarray, there: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Return each lane's share of correct rows in its best prediction.

    Rows where both are absent are correct.

    Args:
        found: Predicted lanes (P, R), x in pixels, negative where absent.
        there: True lanes (N, R) in the same format.
        rows: y of the rows, (R,).

    Returns:
        (N,), 0 without predictions.
    """
    if len(found) == 0:
        return np.zeros(len(there))
    limits = PIXEL_THRESHOLD / np.cos(
        [lane_angle(lane, rows) for lane in there]
    )
    found = np.where(found >= 0, found, ABSENT)
    there = np.where(there >= 0, there, ABSENT)
    gaps = np.abs(there[:, None] - found[None])  # N x P x R
    right = (gaps < limits.reshape(-1, 1, 1)).mean(axis=2)
    return right.max(axis=1)


def lane_angle(lane: np.ndarray, rows: np.ndarray) -> float:
    """Return the angle from the vertical, of the least-squares line x(y).

    Args:
        lane: x at rows, (R,), negative where absent.
        rows: y of the rows, (R,).

    Returns:
        In radians; 0 for a lane of fewer than two points.
    """
    x, y = lane[lane >= 0], rows[lane >= 0]
    if len(x) < 2:
        return 0.0
    centered = y - y.mean()
    return float(
        np.arctan((centered @ (x - x.mean())) / (centered @ centered))
    )


def tusimple_f1(fp: float, fn: float) -> float:
    """Return the F1 that papers report, from the averaged rates.

    P = 1 - FP, R = 1 - FN, F1 = 2 P R / (P + R).
    """
    precision, recall = 1 - fp, 1 - fn
    if precision + recall <= 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)
