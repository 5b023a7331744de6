"""RetinaNet over a grid: the host's head, given the deltas of its logits."""

import copy

import pytest
import torch

pytest.importorskip('mmdet')

import tiny_detectors as tiny

from taskptq.engine.builder import build_adapter

LOSS = dict(type='taskptq.GridLoss', uncertainty='match')


@pytest.fixture
def model():
    head = dict(type='taskptq.GridRetinaHead', loss_bbox=LOSS)
    return tiny.build('retinanet', {'bbox_head': head}).eval()


def test_adapter_sees_logits_and_decodes_them(model):
    batch = tiny.detection_batch()
    adapter = build_adapter(model)
    with torch.no_grad():
        heads = adapter.forward_heads(model, copy.deepcopy(batch))
        found = adapter.decode(
            heads, [s.metainfo for s in batch['data_samples']]
        )
    assert heads['1.0'].shape[1] == 9 * 4 * 11
    for one, two in zip(found, tiny.detections(model, batch), strict=True):
        torch.testing.assert_close(one.bboxes, two.bboxes)


def test_boxes_are_the_hosts_given_the_same_deltas(model):
    head = model.bbox_head
    host = tiny.build('retinanet', {}).bbox_head
    metas = [s.metainfo for s in tiny.detection_batch()['data_samples']]
    sizes = [8, 4, 2, 1, 1]
    scores = [torch.randn(2, 9 * 3, s, s) for s in sizes]
    logits = [torch.randn(2, 9 * 4 * 11, s, s) for s in sizes]
    # Channels of a level: (anchor 4 + coordinate) 11 + point.
    deltas = [
        head.box_grid(level.unflatten(1, (36, 11)).movedim(2, -1))
        for level in logits
    ]
    found = head.predict_by_feat(scores, logits, batch_img_metas=metas)
    expected = host.predict_by_feat(scores, deltas, batch_img_metas=metas)
    for one, two in zip(found, expected, strict=True):
        assert len(one) > 0
        torch.testing.assert_close(one.bboxes, two.bboxes)
        torch.testing.assert_close(one.scores, two.scores)
