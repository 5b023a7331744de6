from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.robustness.boxes import box_offset, shrink


def iou(one, two):
    low, high = (
        torch.maximum(one[:2], two[:2]),
        torch.minimum(one[2:], two[2:]),
    )
    inner = (high - low).prod()
    areas = [(box[2:] - box[:2]).prod() for box in (one, two)]
    return float(inner / (sum(areas) - inner))


def test_vector_of_the_offset():
    box = torch.tensor([42.0, 24.0, 62.0, 48.0])
    found = shrink(box, offset=1.0)
    assert found.tolist() == [42, 24, 61, 47]
    assert iou(box, found) == pytest.approx(0.910417, abs=1e-6)


@pytest.mark.parametrize(
    ('side', 'left'), [(8, 0.7656), (16, 0.8789), (32, 0.9385), (96, 0.9793)]
)
def test_small_boxes_lose_most(side, left):
    box = torch.tensor([0.0, 0.0, side, side])
    assert iou(box, shrink(box, offset=1.0)) == pytest.approx(left, abs=1e-4)


def test_boxes_of_several_classes():
    boxes = torch.tensor([[0.0, 0, 8, 8, 1, 1, 4, 4]])
    assert shrink(boxes, offset=1).tolist() == [[0, 0, 7, 7, 1, 1, 3, 3]]


class Coder:
    def decode(self, points):
        return torch.cat([points, points + 8], dim=-1)


class Detector(nn.Module):
    """Decodes with a coder, by itself, or within its prediction."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.head = nn.Identity()
        if kind == 'coder':
            self.head.bbox_coder = Coder()
        elif kind == 'own':
            self.head._bbox_decode = Coder().decode

    def forward(self, points):
        if self.kind == 'coder':
            boxes = self.head.bbox_coder.decode(points)
        elif self.kind == 'own':
            boxes = self.head._bbox_decode(points)
        elif self.kind == 'none':
            return points
        else:
            boxes = Coder().decode(points)
        found = SimpleNamespace(bboxes=boxes)
        return [SimpleNamespace(pred_instances=found, scale_factor=(1.0, 2.0))]


@pytest.mark.parametrize(
    ('kind', 'corner'),
    [('coder', [7, 7]), ('own', [7, 7]), ('detr', [7, 7.5])],
)
def test_every_way_to_decode_is_reached(kind, corner):
    model = Detector(kind)
    points = torch.zeros(1, 2)
    usual = model(points)[0].pred_instances.bboxes
    with box_offset(model, offset=1.0) as touched:
        for _ in range(2):
            found = model(points)[0].pred_instances.bboxes
            assert found[0].tolist() == [0, 0, *corner]
    assert touched.count
    after = model(points)[0].pred_instances.bboxes
    assert torch.equal(after, usual)


def test_a_model_without_boxes_is_untouched():
    model = Detector('none')
    with box_offset(model, offset=1.0) as touched:
        model(torch.zeros(1, 2))
    assert not touched.count
    assert touched.none == 'the model predicts no boxes'


@pytest.mark.parametrize('name', ['fcos', 'retinanet', 'faster'])
def test_detectors_of_mmdet_are_reached(name):
    pytest.importorskip('mmdet')
    import tiny_detectors as tiny

    batch = tiny.detection_batch()
    model = tiny.build(name, {}).eval()

    def widths():
        found = tiny.detections(model, batch)
        boxes = torch.cat([one.bboxes for one in found])
        return boxes[:, 2] - boxes[:, 0]

    usual = widths()
    with box_offset(model, offset=1.0) as touched:
        shrunk = widths()
    assert touched.count
    assert float(usual.mean() - shrunk.mean()) > 0.2
    assert torch.equal(widths(), usual)
