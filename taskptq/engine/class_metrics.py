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
        evaluator: Evaluator that is about to run; see :meth:`take`.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._asked: list[Any] = []
        self._watched: list[Any] = []
        self._found: dict[str, float] = {}
        for metric in getattr(evaluator, 'metrics', ()):
            if getattr(metric, 'classwise', None) is False:
                metric.classwise = True
                self._asked.append(metric)
            elif hasattr(metric, 'total_area_to_metrics'):
                self._watch(metric)

    def _watch(self, metric: Any) -> None:
        """Keep what a segmentation metric computes of each class."""
        original = metric.total_area_to_metrics

        def total_area_to_metrics(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            self._found |= _class_values(found, _classes_of(metric))
            return found

        metric.total_area_to_metrics = total_area_to_metrics
        self._watched.append(metric)

    def take(self, metrics: dict[str, Any]) -> dict[str, float]:
        """Return the metric of each class, and leave no trace.

        Args:
            metrics: What the evaluator returned; loses the classes that it
                was not asked for.

        Returns:
            Class -> its metric in the unit of the mean; NaN where nothing
            was to score. Empty if the evaluator knows none.
        """
        for metric in self._watched:
            del metric.total_area_to_metrics
        for metric in self._asked:
            metric.classwise = False
            for name, label in _class_names(metrics, metric):
                self._found[label] = float(metrics.pop(name))
        self._watched, self._asked = [], []
        return self._found


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
    """Reads the metrics of single classes in the test of a float model.

    Register it ahead of the hooks that log metrics. ``classes`` has them
    afterwards.
    """

    def __init__(self) -> None:
        self.classes: dict[str, float] = {}
        self._reader: ClassMetrics | None = None

    def before_test_epoch(self, runner: Runner) -> None:
        """Watch the evaluator."""
        self._reader = ClassMetrics(runner.test_loop.evaluator)

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Keep what it found."""
        if self._reader is not None:
            self.classes = self._reader.take(metrics or {})
