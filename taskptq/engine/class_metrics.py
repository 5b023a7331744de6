"""Metrics of single classes, which evaluators compute but do not return."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner

__all__ = ['ClassMetrics', 'ClassMetricsHook']

# Ending of the names under which detection metrics return classes.
ENDING = '_precision'


class ClassMetrics:
    """Reads the metrics of single classes from an evaluator.

    Detection metrics compute them if asked (``classwise``), under names that
    would fill every log; segmentation metrics log a table, from what their
    ``total_area_to_metrics`` returns. Others have none.

    Args:
        evaluator: Evaluator that is about to run once. It returns to what it
            was afterwards.

    Attributes:
        classes: Class -> its metric in the unit of the mean; NaN where
            nothing was to score. Empty before, and if there is none.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.classes: dict[str, float] = {}
        self._asked: list[Any] = []
        self._watched: list[Any] = []
        for metric in getattr(evaluator, 'metrics', ()):
            if getattr(metric, 'classwise', None) is False:
                metric.classwise = True
                self._asked.append(metric)
            elif hasattr(metric, 'total_area_to_metrics'):
                self._watch(metric)
        original = evaluator.evaluate

        def evaluate(size: int) -> dict[str, Any]:
            # Before any hook sees them.
            metrics: dict[str, Any] = original(size)
            del evaluator.evaluate
            self._take(metrics)
            return metrics

        evaluator.evaluate = evaluate

    def _watch(self, metric: Any) -> None:
        """Keep what a segmentation metric computes of each class."""
        original = metric.total_area_to_metrics

        def total_area_to_metrics(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            self.classes |= _class_values(found, _classes_of(metric))
            return found

        metric.total_area_to_metrics = total_area_to_metrics
        self._watched.append(metric)

    def _take(self, metrics: dict[str, Any]) -> None:
        """Move the classes that were not asked for out of the metrics."""
        for metric in self._watched:
            del metric.total_area_to_metrics
        for metric in self._asked:
            metric.classwise = False
            for name, label in _class_names(metrics, metric):
                self.classes[label] = float(metrics.pop(name))


def _class_names(
    metrics: Mapping[str, Any], metric: Any
) -> list[tuple[str, str]]:
    """Return names of metrics that are of one class, and the class."""
    classes = {str(one) for one in _classes_of(metric)}
    found = [
        (name, name.removesuffix(ENDING).rpartition('/')[2])
        for name in metrics
        if name.endswith(ENDING)
    ]
    return [(name, label) for name, label in found if label in classes]


def _class_values(
    areas: Mapping[str, Any], classes: Sequence[str]
) -> Iterator[tuple[str, float]]:
    """Yield each class and its first metric in percent, such as IoU."""
    for value in areas.values():
        if np.size(value) == len(classes) > 1:
            for label, share in zip(classes, np.ravel(value), strict=True):
                yield str(label), round(100 * float(share), 2)
            return


def _classes_of(metric: Any) -> Sequence[str]:
    """Return the classes that a metric scores; empty if unknown."""
    meta = getattr(metric, 'dataset_meta', None) or {}
    return tuple(meta.get('classes') or ())


class ClassMetricsHook(Hook):
    """Reads the metrics of single classes in the test of a float model."""

    def __init__(self) -> None:
        self._reader: ClassMetrics | None = None

    @property
    def classes(self) -> dict[str, float]:
        """See :class:`ClassMetrics`; empty before the test."""
        return {} if self._reader is None else self._reader.classes

    def before_test_epoch(self, runner: Runner) -> None:
        """Watch the evaluator."""
        self._reader = ClassMetrics(runner.test_loop.evaluator)
