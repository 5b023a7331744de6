"""Patches at the proposals of largest discrepancy."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmcv.ops')

from taskptq.core.settings import SettingError
from taskptq.qat.distillation.proposals import (
    DiscrepancyRegion,
    level_of_boxes,
    suppressed,
)

BOXES = torch.tensor([[0.0, 0, 16, 16], [16.0, 16, 32, 32]])


def scene(own, other, *, truth=BOXES[:1]):
    """One image of 32 x 32 pixels; maps have cells of 4."""
    pairs = [(boxes, torch.ones(len(boxes))) for boxes in (own, other)]
    return SimpleNamespace(
        samples=[None],
        proposals=lambda score_thr: pairs,
        annotations=lambda: [truth],
        stride=lambda feature: 4.0,
    )


def features(*, weights=None):
    teacher = torch.zeros(1, 3, 8, 8)
    teacher[:, :, 1, 1] = teacher[:, :, 5, 5] = 4.0
    student = teacher.clone()
    # In the second box the response is elsewhere.
    student[:, :, 5, 5], student[:, :, 7, 7] = 0.0, 4.0
    return {'neck.0': (student.requires_grad_(), teacher, weights)}


def test_the_pair_that_differs_is_kept():
    region = DiscrepancyRegion(share=0.5, size=4)
    found = dict(region.rows(scene(BOXES, BOXES[:0]), features()))
    rows = found['neck.0']
    assert rows.student.shape == (16, 3)
    assert rows.teacher[5, 0] == rows.student[15, 0] == 4
    rows.student.sum().backward()


def test_both_models_propose_and_all_may_be_kept():
    region = DiscrepancyRegion(share=1.0, size=4)
    rows = dict(region.rows(scene(BOXES[:1], BOXES[1:]), features()))
    assert len(rows['neck.0'].student) == 32


def test_without_proposals_truth_serves():
    region = DiscrepancyRegion(size=4)
    rows = dict(region.rows(scene(BOXES[:0], BOXES[:0]), features()))
    assert len(rows['neck.0'].student) == 16


def test_weights_are_cut_as_well():
    weights = torch.zeros(1, 1, 8, 8)
    weights[..., 4:, 4:] = 2.0
    region = DiscrepancyRegion(share=0.5, size=4)
    rows = dict(
        region.rows(scene(BOXES, BOXES[:0]), features(weights=weights))
    )
    assert torch.equal(rows['neck.0'].weights, torch.full((16,), 2.0))


def test_levels_suit_the_boxes():
    sides = torch.tensor([10.0, 27.9, 28.0, 56.0, 500.0])
    boxes = torch.stack([0 * sides, 0 * sides, sides, sides], dim=1)
    levels = level_of_boxes(boxes, [4.0, 8.0, 16.0], cells=7)
    assert levels.tolist() == [0, 0, 0, 1, 2]
    turned = level_of_boxes(boxes, [16.0, 8.0, 4.0], cells=7)
    assert turned.tolist() == [2, 2, 2, 1, 0]


def test_overlapping_proposals_suppress_each_other():
    boxes = torch.cat([BOXES, BOXES[:1] + 1])
    scores = torch.tensor([0.5, 0.6, 0.9])
    kept = suppressed(boxes, scores, overlap=0.1, limit=9)
    assert torch.equal(kept, boxes[[2, 1]])
    assert len(suppressed(boxes, scores, overlap=0.1, limit=1)) == 1
    assert not len(suppressed(boxes[:0], scores[:0], overlap=0.1, limit=1))


def test_tokens_have_no_patches():
    tokens = {'a': (torch.zeros(1, 5, 3), torch.zeros(1, 5, 3), None)}
    with pytest.raises(ValueError, match=r'maps \(B, C, H, W\), which a is'):
        list(DiscrepancyRegion().rows(scene(BOXES, BOXES), tokens))


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('share', 0),
        ('score_thr', 2),
        ('overlap', -1),
        ('max_boxes', 0),
        ('size', 1),
        ('temperature', 0),
    ],
)
def test_settings_are_checked(name, value):
    with pytest.raises(SettingError, match=name):
        DiscrepancyRegion(**{name: value})
