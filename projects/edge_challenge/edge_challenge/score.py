"""The score of the challenge, as its referee computes it.

Dice of a class in an image is 2 TP / (2 TP + FP + FN), undefined for a class
that is in neither map; an image's is the mean over defined classes, and the
accuracy is the mean over images. Score = accuracy / seconds per image. A
single stray pixel of an absent class therefore costs an image the share of a
whole class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = [
    'accuracy_of',
    'challenge_score',
    'class_dice',
    'confusion_matrix',
    'image_dice',
]


def confusion_matrix(
    truth: np.ndarray, prediction: np.ndarray, *, num_classes: int
) -> np.ndarray:
    """Count pixels by true and predicted class.

    Args:
        truth: (H, W) integers; others than 0 to ``num_classes`` - 1 are void.
        prediction: (H, W) integers from 0 to ``num_classes`` - 1.
        num_classes: Number of classes.

    Returns:
        (C, C) int64: rows are true classes.

    Raises:
        ValueError: If the sizes differ, or a prediction is no class.
    """
    if truth.shape != prediction.shape:
        raise ValueError(
            f'label maps of {truth.shape} and {prediction.shape} pixels '
            "cannot be compared: bring the prediction to the label's size"
        )
    known = (truth >= 0) & (truth < num_classes)
    found = prediction[known].astype(np.int64)
    if found.size and not 0 <= found.min() <= found.max() < num_classes:
        raise ValueError(
            f'predictions reach from {found.min()} to {found.max()}, but '
            f'there are {num_classes} classes'
        )
    pairs = num_classes * truth[known].astype(np.int64) + found
    counts = np.bincount(pairs, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def class_dice(confusion: np.ndarray) -> np.ndarray:
    """Return the Dice of each class; NaN if it is in neither map.

    Args:
        confusion: (C, C), see :func:`confusion_matrix`.
    """
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    dice = np.full(len(confusion), np.nan)
    np.divide(2.0 * np.diag(confusion), total, out=dice, where=total > 0)
    return dice


def image_dice(confusion: np.ndarray) -> float:
    """Return the mean Dice of an image; NaN if all its pixels are void."""
    dice = class_dice(confusion)
    defined = dice[~np.isnan(dice)]
    return float(defined.mean()) if defined.size else math.nan


def accuracy_of(images: Sequence[float]) -> float:
    """Return the mean over images that have labels.

    Args:
        images: Mean Dice of each image, see :func:`image_dice`.

    Raises:
        ValueError: If no image has labels.
    """
    defined = [value for value in images if not math.isnan(value)]
    if not defined:
        raise ValueError('no image has a labelled pixel, so there is no score')
    return sum(defined) / len(defined)


def challenge_score(accuracy: float, *, seconds: float) -> float:
    """Return accuracy / seconds per image.

    >>> round(challenge_score(0.5012694410083339,
    ...                       seconds=0.10817168997446695), 6)
    4.634017

    Raises:
        ValueError: If the time is not positive.
    """
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(
            f'seconds={seconds}: give the measured time of the network for '
            'one image, above 0'
        )
    return accuracy / seconds
