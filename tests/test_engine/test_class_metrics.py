"""Metrics of single classes, which evaluators compute but do not return."""

import numpy as np
import pytest
from mmengine.evaluator import BaseMetric, Evaluator

from taskptq.engine.class_metrics import ClassMetrics, ClassMetricsHook

CLASSES = ('cat', 'dog')


class Detection(BaseMetric):
    """Returns classes if asked, as mmdet's CocoMetric does."""

    default_prefix = 'coco'

    def __init__(self, *, classwise=False):
        super().__init__()
        self.classwise = classwise

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        found = {'bbox_mAP': 0.3, 'other_precision': 0.5}
        if self.classwise:
            found |= {'cat_precision': 0.4, 'dog_precision': float('nan')}
        return found


class Segmentation(Detection):
    """Computes classes on its way, as mmseg's IoUMetric does."""

    def __init__(self):
        super().__init__()
        del self.classwise

    @staticmethod
    def total_area_to_metrics(shares):
        return {'aAcc': np.float64(0.9), 'IoU': shares, 'Acc': shares / 2}

    def compute_metrics(self, results):
        shares = np.array([0.5, 0.25])
        return {'mIoU': self.total_area_to_metrics(shares)['IoU'].mean()}


@pytest.fixture
def evaluate():
    def run(metric, *, classes=CLASSES):
        metric.dataset_meta = {'classes': classes}
        evaluator = Evaluator([metric])
        reader = ClassMetrics(evaluator)
        evaluator.process(data_samples=[], data_batch=None)
        metrics = evaluator.evaluate(1)
        assert 'evaluate' not in vars(evaluator)
        return metrics, reader.classes

    return run


def test_classes_of_a_detection_metric(evaluate):
    metric = Detection()
    metrics, classes = evaluate(metric)
    assert classes == {'cat': 0.4, 'dog': pytest.approx(np.nan, nan_ok=True)}
    assert metrics == {'coco/bbox_mAP': 0.3, 'coco/other_precision': 0.5}
    assert metric.classwise is False


def test_what_the_user_asked_for_stays(evaluate):
    metrics, classes = evaluate(Detection(classwise=True))
    assert metrics['coco/cat_precision'] == 0.4
    assert classes == {}


def test_classes_of_a_segmentation_metric_in_percent(evaluate):
    metric = Segmentation()
    metrics, classes = evaluate(metric)
    assert metrics == {'coco/mIoU': 0.375}
    assert classes == {'cat': 50.0, 'dog': 25.0}
    assert 'total_area_to_metrics' not in vars(metric)


@pytest.mark.parametrize('classes', [None, (), ('cat', 'dog', 'bird')])
def test_unknown_classes_are_left_out(evaluate, classes):
    assert evaluate(Segmentation(), classes=classes)[1] == {}


def test_the_hook_takes_classes_from_a_test(make_runner, float_checkpoint):
    runner = make_runner(float_checkpoint)
    hook = ClassMetricsHook()
    runner.register_hook(hook)
    (metric,) = runner.test_loop.evaluator.metrics
    metric.classwise = False
    metric.dataset_meta = {'classes': CLASSES}
    original = metric.compute_metrics
    metric.compute_metrics = lambda results: {
        **original(results),
        'cat_precision': 0.25,
    }
    assert hook.classes == {}
    metrics = runner.test()
    assert hook.classes == {'cat': 0.25}
    logged = runner.message_hub.log_scalars
    assert not any('cat_precision' in name for name in (*metrics, *logged))
