import math

import pytest
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from sam_detector.losses import box_weights, dice_loss, focal_loss, mask_iou


def test_weights_by_hand():
    boxes = torch.tensor(
        [[2.0, 2.0, 6.0, 6.0], [3.5, 3.5, 4.5, 4.5], [-1.0, 0.0, 9.0, 8.0]]
    )
    found = box_weights(boxes, size=8, margin=0.25, outside=0.25)
    inside = torch.zeros(3, 8, 8, dtype=torch.bool)
    inside[0, 1:7, 1:7] = True  # a quarter of 4 pixels on each side
    inside[1, 3:5, 3:5] = True  # the side counts as 4 pixels
    inside[2] = True
    for weights, part, count in zip(found, inside, (36, 4, 64), strict=True):
        assert weights[part].tolist() == pytest.approx([1 / count] * count)
        rest = 64 - count
        assert weights[~part].tolist() == pytest.approx(
            [0.25 / max(rest, 1)] * rest
        )


def test_sums_of_weights():
    corner = torch.rand(50, 2) * 40
    boxes = torch.cat([corner, corner + 1 + torch.rand(50, 2) * 20], dim=1)
    for outside in (0.0, 0.25, 1.0):
        weights = box_weights(boxes, size=64, margin=0.25, outside=outside)
        assert weights.sum(dim=(1, 2)).tolist() == pytest.approx(
            [1 + outside] * 50
        )
    # Nothing is left outside.
    whole = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    weights = box_weights(whole, size=64, margin=0.25, outside=0.25)
    assert weights.sum() == pytest.approx(1.0)
    assert box_weights(
        whole[:0], size=64, margin=0.25, outside=0.25
    ).shape == (0, 64, 64)


def test_focal_by_hand():
    logits = torch.tensor([[[0.0, math.log(3.0)]]])  # p = 0.5, 0.75
    targets = torch.tensor([[[1.0, 0.0]]])
    weights = torch.tensor([[[1.0, 2.0]]])
    plain = math.log(2) * 0.5**2 + 2 * math.log(4) * 0.75**2
    found = focal_loss(logits, targets, weights, alpha=-1.0, gamma=2.0)
    assert found.tolist() == pytest.approx([plain])
    weighed = 0.25 * math.log(2) * 0.5**2 + 0.75 * 2 * math.log(4) * 0.75**2
    found = focal_loss(logits, targets, weights, alpha=0.25, gamma=2.0)
    assert found.tolist() == pytest.approx([weighed])


@pytest.mark.parametrize(
    ('alpha', 'gamma'), [(0.25, 2.0), (-1.0, 2.0), (0.5, 1.0), (0.25, 0.0)]
)
def test_focal_equals_torchvision(alpha, gamma):
    logits = torch.randn(3, 5, 7) * 4
    targets = (torch.rand(3, 5, 7) > 0.6).float()
    weights = torch.rand(3, 5, 7)
    expected = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(
        focal_loss(logits, targets, weights, alpha=alpha, gamma=gamma),
        (expected * weights).sum(dim=(1, 2)),
    )


def test_focal_without_focus_is_cross_entropy():
    logits, targets = torch.randn(2, 4, 4), torch.rand(2, 4, 4)
    expected = functional.binary_cross_entropy_with_logits(
        logits, targets, reduction='none'
    ).mean(dim=(1, 2))
    found = focal_loss(
        logits, targets, torch.full((2, 4, 4), 1 / 16), alpha=-1.0, gamma=0.0
    )
    torch.testing.assert_close(found, expected)


def test_gradients_stay_finite():
    logits = torch.tensor([[[-1e4, 1e4, 0.0, 1e4]]], requires_grad=True)
    targets = torch.tensor([[[0.0, 1.0, 1.0, 0.0]]])
    loss = focal_loss(
        logits, targets, torch.ones(1, 1, 4), alpha=-1.0, gamma=2.0
    ) + dice_loss(logits, targets)
    loss.sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 0, 2] < 0


def test_dice_by_hand():
    targets = torch.zeros(3, 2, 2)
    targets[:2, 0, 0] = 1
    logits = torch.zeros(3, 2, 2)
    logits[1] = targets[1] * 200 - 100  # exact
    logits[2] = -100  # nothing, and nothing was to be found
    # p = 0.5: overlap 0.5, total 2 + 1, each with one more.
    assert dice_loss(logits, targets).tolist() == pytest.approx([0.5, 0, 0])
    wrong = dice_loss(-logits[1:2], targets[1:2])
    assert wrong.tolist() == pytest.approx([1 - 1 / 5])


def test_iou_by_hand():
    first, second = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    first[0, :2] = True  # 8 pixels, 4 of them and 4 others in the second
    second[0, 1:3] = True
    first[1, 1, 1] = second[1, 1, 1] = True
    assert mask_iou(first, second).tolist() == pytest.approx([1 / 3, 1, 0])
    assert mask_iou(first[:0], second[:0]).shape == (0,)
