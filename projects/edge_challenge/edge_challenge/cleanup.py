"""Remove what the labels of the training set say cannot be.

Learnt from label maps alone: a class with fewer pixels than a third of the
fewest it ever had becomes background, and of two classes that never met, the
smaller becomes background. The second team of 2023 worked so; specks of wrong
classes are also what low bits add.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

__all__ = ['LabelStatistics', 'clean_labels']

BACKGROUND = 0
SHARE = 3


@dataclass(frozen=True, kw_only=True)
class LabelStatistics:
    """What training labels show.

    Args:
        least_pixels: (C,) fewest pixels of each class in an image that has
            it; 0 for classes in no image.
        together: (C, C) whether two classes were in one image.
    """

    least_pixels: np.ndarray
    together: np.ndarray

    @classmethod
    def of(
        cls, labels: Iterable[np.ndarray], *, num_classes: int
    ) -> LabelStatistics:
        """Count label maps.

        Args:
            labels: (H, W) integers; others than classes are void.
            num_classes: Number of classes.
        """
        least = np.zeros(num_classes, np.int64)
        together = np.zeros((num_classes, num_classes), bool)
        for label in labels:
            counts = _counts(label, num_classes)
            present = counts > 0
            together |= present[:, None] & present[None, :]
            fewer = present & ((least == 0) | (counts < least))
            least[fewer] = counts[fewer]
        return cls(least_pixels=least, together=together)


def _counts(label: np.ndarray, num_classes: int) -> np.ndarray:
    known = label[(label >= 0) & (label < num_classes)]
    return np.bincount(known.ravel(), minlength=num_classes)


def clean_labels(
    prediction: np.ndarray, statistics: LabelStatistics
) -> np.ndarray:
    """Turn what cannot be into background.

    Args:
        prediction: (H, W) classes.
        statistics: Of the training labels.

    Returns:
        (H, W), a copy.
    """
    cleaned = prediction.copy()
    num_classes = len(statistics.least_pixels)
    counts = _counts(cleaned, num_classes)
    small = SHARE * counts < statistics.least_pixels
    small[BACKGROUND] = False
    cleaned[np.isin(cleaned, np.flatnonzero(small))] = BACKGROUND
    counts[small] = 0
    # The largest classes stay; each smaller one must have met all of them.
    kept: list[int] = []
    for number in np.argsort(-counts, kind='stable'):
        if number == BACKGROUND or not counts[number]:
            continue
        if all(statistics.together[number, other] for other in kept):
            kept.append(int(number))
        else:
            cleaned[cleaned == number] = BACKGROUND
    return cleaned
