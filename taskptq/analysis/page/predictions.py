"""What a model found in an image, read from a host's data sample.

A sample is known by its fields alone: each of its ``pred_*`` entries may hold
``bboxes`` (with ``labels``, ``scores``, ``masks``), polylines in ``points``
(with ``scores``), or a map of classes in ``sem_seg`` or ``data``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ['Box', 'Line', 'Prediction', 'read_prediction']

# Objects of one image that are kept, the most confident ones.
MAX_OBJECTS = 100


@dataclass(frozen=True, kw_only=True)
class Box:
    """One object.

    Args:
        corners: x1, y1, x2, y2 in pixels of the original image.
        label: Index of its class.
        score: Confidence in [0, 1].
        mask: (H, W) bool, or None.
    """

    corners: tuple[float, float, float, float]
    label: int
    score: float
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, kw_only=True)
class Line:
    """One polyline, such as a lane.

    Args:
        points: (n, 2), x and y in pixels of the original image.
        score: Confidence in [0, 1].
    """

    points: NDArray[np.float64]
    score: float


@dataclass(kw_only=True)
class Prediction:
    """Everything found in one image.

    Args:
        boxes: Objects, the most confident first.
        lines: Polylines, the most confident first.
        classes: (H, W), the class of each pixel; None without.
    """

    boxes: list[Box] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    classes: NDArray[np.int64] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing that can be drawn was found."""
        return not self.boxes and not self.lines and self.classes is None


def read_prediction(sample: Any, *, score: float) -> Prediction:
    """Read a data sample.

    Args:
        sample: Output of a model for one image.
        score: Least confidence of boxes and lines.
    """
    found = Prediction()
    for entry in _predicted(sample):
        if _has(entry, 'bboxes'):
            found.boxes += _boxes(entry, score=score)
        elif _has(entry, 'points'):
            found.lines += _lines(entry, score=score)
        else:
            classes = _class_map(entry)
            found.classes = classes if classes is not None else found.classes
    found.boxes = _best(found.boxes)
    found.lines = _best(found.lines)
    return found


def _predicted(sample: Any) -> Iterator[Any]:
    """Yield the predicted entries; drafts such as proposals come last."""
    keys = getattr(sample, 'all_keys', None) or getattr(sample, 'keys', None)
    for key in sorted(keys() if callable(keys) else ()):
        name = str(key).lstrip('_')
        if name.startswith('pred_') or name == 'sem_seg':
            yield getattr(sample, str(key))


def _has(entry: Any, key: str) -> bool:
    return getattr(entry, key, None) is not None


def _boxes(entry: Any, *, score: float) -> Iterator[Box]:
    corners = _array(getattr(entry.bboxes, 'tensor', entry.bboxes))
    scores = _scores(entry, len(corners))
    labels = getattr(entry, 'labels', None)
    labels = np.zeros(len(corners)) if labels is None else _array(labels)
    masks = getattr(entry, 'masks', None)
    if corners.ndim != 2 or corners.shape[1] != 4:
        return
    for index in range(len(corners)):
        if not score <= scores[index] <= 1:
            continue
        x1, y1, x2, y2 = (float(value) for value in corners[index])
        yield Box(
            corners=(x1, y1, x2, y2),
            label=int(labels[index]),
            score=float(scores[index]),
            mask=None if masks is None else _mask(masks, index),
        )


def _lines(entry: Any, *, score: float) -> Iterator[Line]:
    scores = _scores(entry, len(entry.points))
    for points, confidence in zip(entry.points, scores, strict=True):
        line = np.asarray(_array(points), dtype=np.float64)
        is_line = line.ndim == 2 and line.shape[1] == 2 and len(line) > 1
        if is_line and score <= confidence:
            yield Line(points=line, score=float(confidence))


def _class_map(entry: Any) -> NDArray[np.int64] | None:
    for key in ('sem_seg', 'data'):
        if _has(entry, key) and isinstance(getattr(entry, key), Tensor):
            found = _array(getattr(entry, key)).squeeze()
            if found.ndim == 2:
                return np.asarray(found, dtype=np.int64)
    return None


def _scores(entry: Any, count: int) -> NDArray[np.float64]:
    scores = getattr(entry, 'scores', None)
    if scores is None:
        return np.ones(count)
    return np.asarray(_array(scores), dtype=np.float64).reshape(-1)


def _mask(masks: Any, index: int) -> NDArray[np.bool_] | None:
    found = masks[index]
    if not isinstance(found, (Tensor, np.ndarray)):
        return None
    return np.asarray(_array(found), dtype=np.bool_)


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach().to('cpu')
        if value.dtype == torch.bfloat16:
            value = value.float()
        return np.asarray(value.numpy())
    return np.asarray(value)


def _best(found: Sequence[Any]) -> list[Any]:
    return sorted(found, key=lambda one: -float(one.score))[:MAX_OBJECTS]
