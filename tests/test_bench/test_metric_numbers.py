"""Metrics as plain numbers, and classes that a metric only logs."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('mmengine')

from taskptq.bench.metric_numbers import finite_numbers, watch_classes


def test_only_finite_numbers_are_kept():
    metrics = {
        'AP': np.float32(0.5),
        'none': math.nan,
        'endless': math.inf,
        'text': 'a',
        'count': 3,
    }
    assert finite_numbers(metrics) == {'AP': 0.5, 'count': 3.0}


def test_classes_that_a_metric_only_logs():
    def areas_to_metrics(iou):
        return {'IoU': np.array(iou)}

    metric = SimpleNamespace(
        total_area_to_metrics=areas_to_metrics,
        dataset_meta={'classes': ('road', 'sky')},
    )
    evaluator = SimpleNamespace(metrics=[metric, SimpleNamespace()])
    found = watch_classes(evaluator)
    assert found == {}
    assert list(metric.total_area_to_metrics([0.5, 0.125])) == ['IoU']
    assert found == {'IoU/road': 50.0, 'IoU/sky': 12.5}
