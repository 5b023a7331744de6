"""How far matched queries disagree: by hand."""

from types import SimpleNamespace

import pytest
import torch

from taskptq.methods.qdetr.agreement import (
    box_distances,
    check_metric,
    compare_teachers,
    distillation_distance,
    matched_agreement,
    relative_distance,
)
from taskptq.methods.qdetr.matching import all_queries, match_queries


def test_relative_distance():
    """In units of the teacher's features, whatever their length."""
    teacher = torch.tensor([[[3.0, 4.0], [0.0, 5.0]]])
    student = teacher + torch.tensor([[[0.0, 1.0], [0.0, 2.0]]])
    match = all_queries(torch.zeros(1, 2, 4))
    found = relative_distance(student, teacher, match=match)
    torch.testing.assert_close(found, torch.tensor(1.5 / 5))
    torch.testing.assert_close(
        relative_distance(8 * student, 8 * teacher, match=match), found
    )


def test_agreement_by_hand():
    match = all_queries(torch.zeros(1, 1, 4))
    one = torch.tensor([[[0.25, 0.25, 0.5, 0.5]]])
    two = torch.tensor([[[0.5, 0.25, 0.5, 0.5]]])
    logits = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1.0, -2.0]]])
    for use_sigmoid in (True, False):
        found = matched_agreement(
            one, two, *logits, match=match, use_sigmoid=use_sigmoid
        )
        assert found.l1.item() == pytest.approx(0.25)
        assert found.giou.item() == pytest.approx(2 / 3)
        if use_sigmoid:
            p, q = logits[1].sigmoid(), logits[0].sigmoid()
            expected = (
                p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
            ).sum()
        else:
            p, q = logits[1].softmax(-1), logits[0].softmax(-1)
            expected = (p * (p / q).log()).sum()
        assert found.kl.item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_matched_is_zero_with_a_gradient():
    boxes = torch.rand(1, 3, 4, requires_grad=True)
    logits = torch.randn(1, 3, 2, requires_grad=True)
    match = match_queries(boxes, boxes.detach(), [torch.zeros(0, 4)])
    terms = matched_agreement(
        boxes, boxes + 1, logits, logits + 1, match=match, use_sigmoid=True
    )
    drd = distillation_distance(logits, logits + 1, match=match)
    total = sum(terms) + drd
    assert total.item() == 0
    total.backward()
    assert not boxes.grad.any()
    assert not logits.grad.any()


def heads(classes=4, width=6):
    return {
        'cls.0': torch.zeros(1, 2, classes),
        'attended.0': torch.zeros(1, 2, width),
    }


@pytest.mark.parametrize(
    ('other', 'wanted', 'said'),
    [
        (heads(width=8), {'attended'}, 'attended has 8 channels'),
        (heads(classes=5), {'classes'}, 'cls has 5 channels'),
        (heads(), {'classes'}, 'class_weight=0'),
    ],
)
def test_teachers_of_another_kind_are_refused(other, wanted, said):
    """And only where their outputs are compared."""
    adapters = (
        SimpleNamespace(use_sigmoid=True),
        SimpleNamespace(use_sigmoid=False),
    )

    def compare(terms):
        compare_teachers(
            heads(),
            other,
            layers=(0, 0),
            adapters=adapters,
            attended='attended' in terms,
            classes='classes' in terms,
        )

    with pytest.raises(ValueError, match=said):
        compare(wanted)
    compare(set())


def test_lines_are_compared_row_by_row():
    teacher = torch.full((1, 2, 5), 0.4)
    student = teacher.clone()
    student[0, 1] += 0.025
    student.requires_grad_()
    match = all_queries(torch.zeros(1, 2, 4))
    l1, giou = box_distances(student, teacher, match=match, metric='strip')
    assert float(l1) == pytest.approx(0.0125)
    # One of both strips, 0.1 wide, is a quarter of its width off: 1 - 3 / 5.
    assert float(giou) == pytest.approx(0.2, abs=1e-5)
    (l1 + giou).backward()
    assert (student.grad[0, 1] > 0).all()
    assert student.grad.isfinite().all()


def test_the_metric_fits_what_queries_are():
    lines, boxes = SimpleNamespace(lines=True), SimpleNamespace()
    check_metric('strip', lines)
    check_metric('nwd', boxes)
    with pytest.raises(ValueError, match="are lines: set metric='strip'"):
        check_metric('giou', lines)
    with pytest.raises(ValueError, match="are boxes: set metric='giou'"):
        check_metric('strip', boxes)
