"""The numbers that an evaluator gives, and those that it only logs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskptq.engine.builder import to_plain


def watch_classes(evaluator: Any) -> dict[str, float]:
    """Collect the per-class IoU that mmseg's IoUMetric only logs.

    Args:
        evaluator: mmengine's Evaluator.

    Returns:
        A dict that ``evaluate`` fills: ``IoU/<class>`` -> percent.
    """
    found: dict[str, float] = {}
    for metric in evaluator.metrics:
        compute = getattr(metric, 'total_area_to_metrics', None)
        if compute is not None:
            names = metric.dataset_meta['classes']
            metric.total_area_to_metrics = _watched(compute, names, found)
    return found


def _watched(
    compute: Callable[..., Any], names: Sequence[str], found: dict[str, float]
) -> Callable[..., Any]:

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = compute(*args, **kwargs)
        values = result.get('IoU', [])
        for name, value in zip(names, values, strict=False):
            found[f'IoU/{name}'] = round(100 * float(value), 2)
        return result

    return watched


def finite_numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Keep finite numbers (classes without objects have NaN)."""
    plain = to_plain(metrics)
    return {
        key: float(value)
        for key, value in plain.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
