"""Metrics on the page: the main one, what is kept of it, and per class."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ['class_rows', 'classes_in', 'kept', 'main_metric', 'metric_rows']

# A mean over classes, as mm's metrics spell it: mAP, bbox_mAP, mIoU, mDice.
MEAN = re.compile(r'(^|[/_])m[A-Z][A-Za-z]*$')
# Longer ways to write the same number, and numbers at one threshold.
DETAIL = re.compile(r'_\d+$|_[sml]$|copypaste')


def main_metric(metrics: Mapping[str, Any]) -> str | None:
    """Return the name of the metric that sums a model up; None without.

    >>> main_metric({'aAcc': 90.0, 'mIoU': 65.2, 'mAcc': 70.0})
    'mIoU'
    >>> main_metric({'coco/bbox_mAP': 0.28, 'coco/bbox_mAP_50': 0.44})
    'coco/bbox_mAP'
    """
    known = [name for name, value in metrics.items() if value is not None]
    means = [name for name in known if MEAN.search(name)]
    plain = [name for name in known if not DETAIL.search(name)]
    return next(iter([*means, *plain, *known]), None)


def kept(value: float | None, *, of: float | None) -> float | None:
    """Return the share of a float metric that is kept; None if unknown."""
    if value is None or not of:
        return None
    return value / of


def metric_rows(
    float_metrics: Mapping[str, Any], files: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a row for each metric, without those of single classes.

    Args:
        float_metrics: Of the float model, may be empty.
        files: Metrics of each quantized file, may be empty.

    Returns:
        ``name``, ``float`` and ``values``, one for each file.
    """
    names = list(dict.fromkeys(n for m in (float_metrics, *files) for n in m))
    return [
        {
            'name': name,
            'float': _known(float_metrics.get(name)),
            'values': [_known(metrics.get(name)) for metrics in files],
        }
        for name in names
        if class_of(name) is None
    ]


def class_rows(
    float_classes: Mapping[str, Any], files: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a row for each class that any model was scored on.

    Args:
        float_classes: Class -> metric of the float model, may be empty.
        files: The same of each quantized file.

    Returns:
        Rows as of :func:`metric_rows`.
    """
    names = dict.fromkeys(n for m in (float_classes, *files) for n in m)
    rows: list[dict[str, Any]] = [
        {
            'name': name,
            'float': _known(float_classes.get(name)),
            'values': [_known(classes.get(name)) for classes in files],
        }
        for name in names
    ]
    return [
        row
        for row in rows
        if any(value is not None for value in (row['float'], *row['values']))
    ]


def classes_in(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return class -> metric of what an evaluator returned by class.

    >>> classes_in({'coco/bbox_mAP': 0.3, 'coco/cat_precision': 0.5})
    {'cat': 0.5}
    """
    return {
        label: value
        for name, value in metrics.items()
        if (label := class_of(name)) is not None
    }


def _known(value: float | None) -> float | None:
    """Return a metric; COCO's -1 stands for 'nothing to score'."""
    return None if value == -1 else value


def class_of(name: str) -> str | None:
    """Return the class that a metric is of; None if it is of all.

    >>> class_of('coco/traffic light_precision'), class_of('coco/bbox_mAP')
    ('traffic light', None)
    """
    found = re.fullmatch(r'(?:.*/)?(.+)_precision', name)
    return found[1] if found else None
