import builtins

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')
pytest.importorskip('onnxruntime')

import torch
from mmengine.structures import InstanceData
from torch import nn

from taskptq.engine.box_decoder import (
    BoxDecoder,
    columns_of,
    decodable,
    found_boxes,
    traced_extreme,
)
from taskptq.export.onnx import OnnxExportError
from taskptq.export.onnx.runtime import session
from taskptq.export.onnx.tracing import trace


class Head(nn.Module):
    """Decodes as hosts do: counts in Python, clamps columns, runs NMS."""

    def __init__(self, **nms):
        super().__init__()
        self.nms = {'type': 'nms', 'iou_threshold': 0.5, **nms}

    def predict_by_feat(self, boxes, scores, batch_img_metas, rescale):
        from mmcv.ops import batched_nms

        height, width = batch_img_metas[0]['img_shape']
        kept = torch.nonzero(scores[0] > 0.5)[:, 0]
        count = min(4, kept.size(0))
        kept = kept[:count]
        boxes = boxes[0][kept] + 0
        boxes[..., 0::2].clamp_(min=0, max=width)
        boxes[..., 1::2].clamp_(min=0, max=height)
        scores = scores[0][kept]
        labels = torch.zeros_like(kept)
        dets, index = batched_nms(boxes, scores, labels, self.nms)
        return [
            InstanceData(
                bboxes=boxes[index], scores=dets[:, -1], labels=labels[index]
            )
        ]


def raw(count, *, spread):
    """The first boxes of a row; each covers most of the one before."""
    start = spread * torch.arange(6.0)[:, None]
    boxes = torch.cat([start - 4, start - 4, start + 9, start + 9], dim=1)
    scores = torch.full((6,), 0.1)
    scores[:count] = 0.9 - 0.05 * torch.arange(count)
    return boxes[None], scores[None]


def graph_of(head, outputs, *, size=(20, 12)):
    decoder = BoxDecoder(head, names=['boxes', 'scores'], size=size).eval()
    model = trace(
        decoder,
        outputs,
        input_names=['a', 'b'],
        output_names=['x', 'y', 'z'],
        dynamic_axes={name: {0: 'found'} for name in 'xyz'},
        opset=20,
    )
    run = session(model.SerializeToString())

    def decode(boxes, scores):
        return run.run(None, {'a': boxes.numpy(), 'b': scores.numpy()})

    return decoder, decode


@pytest.mark.parametrize('spread', [1.0, 12.0])
@pytest.mark.parametrize('count', [1, 2, 6])
def test_a_graph_decodes_other_numbers_of_boxes(count, spread):
    decoder, decode = graph_of(Head(), raw(3, spread=5.0))
    outputs = raw(count, spread=spread)
    expected, found = decoder(*outputs), decode(*outputs)
    assert 1 <= len(expected[0]) <= 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(one), other)
    assert expected[0].min() == 0
    assert expected[0][:, 0::2].max() <= 12


def test_an_image_without_boxes():
    _, decode = graph_of(Head(), raw(3, spread=5.0))
    assert [len(x) for x in decode(*raw(0, spread=5.0))] == [0, 0, 0]


def test_another_nms_is_refused():
    head = Head(offset=1)
    with pytest.raises((OnnxExportError, ValueError), match='offset=1'):
        graph_of(head, raw(3, spread=5.0))


def test_predictions_of_more_than_boxes_are_refused():
    found = InstanceData(
        bboxes=torch.zeros(1, 4), scores=torch.zeros(1), masks=torch.zeros(1)
    )
    with pytest.raises(ValueError, match='hold bboxes, masks, scores'):
        found_boxes(found)


def test_nothing_stays_replaced():
    from mmcv.ops import nms

    plain = builtins.min, nms
    with decodable():
        assert builtins.min is not plain[0]
    assert (builtins.min, nms) == plain


def test_numbers_are_compared_as_ever():
    smallest = traced_extreme(min, 'min')
    assert smallest(3, 2) == 2
    assert smallest([4, 1]) == 1
    assert smallest(2, -3, key=abs) == 2
    assert smallest(3, torch.tensor(2)) == torch.tensor(2)


def test_columns_that_a_view_shows():
    base = torch.zeros(3, 4)
    assert columns_of(base[:, 0::2], base).tolist() == [True, False] * 2
    assert columns_of(base[1:], base) is None
    assert columns_of(base.view(3, 4), base).all()
