"""Pieces of a measurement: batches read once, metrics as plain numbers."""

import hashlib
import math
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip('mmengine')

from taskptq.bench.measurement import (
    Replay,
    file_digest,
    finite_numbers,
    watch_classes,
)


class Counted(Sequence):
    """Batches that count how often they are read."""

    reads = 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index >= 2:
            raise IndexError
        self.reads += 1
        return {'x': torch.full((2,), float(index))}


def test_batches_are_read_once_and_come_fresh():
    source = Counted()
    replay = Replay(source)
    for _ in range(2):
        for expected, batch in enumerate(replay):
            assert batch['x'].tolist() == [expected] * 2
            # A preprocessor may write into what it is given.
            batch['x'] = None
    assert len(replay) == 2
    assert source.reads == 2


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


def test_digest_is_of_the_bytes(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'weights')
    assert file_digest(path) == hashlib.sha256(b'weights').hexdigest()
