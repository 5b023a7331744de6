"""Metrics on the page."""

import pytest

from taskptq.analysis.page.metrics import (
    class_rows,
    classes_in,
    kept,
    main_metric,
    metric_rows,
)


@pytest.mark.parametrize(
    ('metrics', 'name'),
    [
        ({'coco/bbox_mAP_50': 0.4, 'coco/bbox_mAP': 0.2}, 'coco/bbox_mAP'),
        ({'aAcc': 90, 'mIoU': 60, 'mAcc': 70}, 'mIoU'),
        ({'coco/bbox_mAP': None, 'F1@0.5': 0.3}, 'F1@0.5'),
        ({'x': None}, None),
        ({}, None),
    ],
)
def test_the_main_metric(metrics, name):
    assert main_metric(metrics) == name


def test_what_is_kept():
    assert kept(0.27, of=0.3) == pytest.approx(0.9)
    assert kept(0.27, of=None) is None
    assert kept(None, of=0.3) is None
    assert kept(0.2, of=0.0) is None


def test_rows_of_all_files_and_of_classes():
    of_float = {
        'coco/bbox_mAP': 0.3,
        'coco/bbox_mAP_l': -1.0,
        'coco/cat_precision': 0.5,
    }
    files = [{'coco/bbox_mAP': 0.2}, {'coco/dog_precision': 0.1}]
    assert metric_rows(of_float, files) == [
        {'name': 'coco/bbox_mAP', 'float': 0.3, 'values': [0.2, None]},
        {'name': 'coco/bbox_mAP_l', 'float': None, 'values': [None, None]},
    ]
    rows = class_rows(
        classes_in(of_float), [{'bird': -1.0}, classes_in(files[1])]
    )
    assert rows == [
        {'name': 'cat', 'float': 0.5, 'values': [None, None]},
        {'name': 'dog', 'float': None, 'values': [None, 0.1]},
    ]
