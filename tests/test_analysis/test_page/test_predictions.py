"""Predictions are read from samples by their fields alone."""

from types import SimpleNamespace

import numpy as np
import torch

from taskptq.analysis.page.predictions import MAX_OBJECTS, read_prediction


class Sample:
    """As mmengine's BaseDataElement: named entries."""

    def __init__(self, **entries):
        self.__dict__ |= entries

    def all_keys(self):
        return list(self.__dict__)


def boxes(count=3, **more):
    return SimpleNamespace(
        bboxes=torch.arange(4 * count, dtype=torch.float).view(count, 4),
        labels=torch.arange(count),
        scores=torch.linspace(0.2, 0.8, count),
        **more,
    )


def test_confident_boxes_the_best_first():
    found = read_prediction(Sample(pred_instances=boxes()), score=0.3)
    assert [(box.label, round(box.score, 1)) for box in found.boxes] == [
        (2, 0.8),
        (1, 0.5),
    ]
    assert found.boxes[1].corners == (4, 5, 6, 7)
    assert found.boxes[0].mask is None
    assert not found.is_empty


def test_boxes_of_a_host_class_and_masks():
    entry = boxes(masks=torch.ones(3, 4, 6, dtype=torch.bool))
    entry.bboxes = SimpleNamespace(tensor=entry.bboxes)
    found = read_prediction(Sample(pred_instances=entry), score=0)
    assert found.boxes[0].mask.shape == (4, 6)
    assert found.boxes[0].mask.all()


def test_lines():
    entry = SimpleNamespace(
        points=[np.ones((5, 2)), np.ones((1, 2)), np.zeros((4, 2))],
        scores=torch.tensor([0.9, 0.9, 0.1]),
    )
    found = read_prediction(Sample(pred_lanes=entry), score=0.5)
    assert [line.points.shape for line in found.lines] == [(5, 2)]


def test_maps_of_classes():
    entry = SimpleNamespace(data=torch.ones(1, 4, 6, dtype=torch.long))
    found = read_prediction(Sample(_pred_sem_seg=entry), score=0)
    assert found.classes.shape == (4, 6)


def test_annotations_and_logits_are_left_out():
    sample = Sample(
        gt_instances=boxes(),
        seg_logits=SimpleNamespace(data=torch.ones(3, 4, 4)),
    )
    assert read_prediction(sample, score=0).is_empty


def test_other_outputs_hold_nothing():
    for output in (torch.ones(3), {'boxes': 1}, None, [1]):
        assert read_prediction(output, score=0).is_empty


def test_only_the_best_objects_are_kept():
    found = read_prediction(Sample(pred_instances=boxes(300)), score=0)
    assert len(found.boxes) == MAX_OBJECTS
    assert found.boxes[0].score > found.boxes[-1].score
