"""Foreground-aware query matching: by hand, and what must always hold."""

import math

import pytest
import torch

from taskptq.methods.qdetr.matching import (
    all_queries,
    foreground_queries,
    giou_matrix,
    match_queries,
    nwd_matrix,
    similarity_matrix,
    strip_similarity,
    teacher_partners,
    to_corners,
)


def boxes_of(count, *, seed=0, size=0.2):
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand((count, 2), generator=generator) * 0.6 + 0.2
    sides = torch.rand((count, 2), generator=generator) * size + 0.05
    return torch.cat([center, sides], dim=1)


def test_giou_by_hand():
    one = torch.tensor([[0.25, 0.25, 0.5, 0.5]])  # 0 0 .5 .5
    two = torch.tensor(
        [
            [0.25, 0.25, 0.5, 0.5],
            [0.5, 0.25, 0.5, 0.5],  # overlaps by half
            [0.875, 0.25, 0.25, 0.5],
        ]
    )  # .25 away, half as wide
    found = giou_matrix(one, two)
    # hull of the last pair: 1 x .5, empty in .25 x .5 of it
    expected = torch.tensor([[1.0, 1 / 3, -0.25]])
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[0, 0], torch.tensor(1.0))


@pytest.mark.parametrize('shift', [0.0, 0.01, 0.1, 0.3])
def test_a_strip_has_the_giou_of_its_rows(shift):
    rows = torch.full((1, 4), 0.5)
    box = torch.tensor([[0.5, 0.5, 0.1, 1.0]], dtype=torch.float64)
    moved = box + torch.tensor([shift, 0, 0, 0], dtype=torch.float64)
    found = similarity_matrix(rows, rows + shift, metric='strip')
    torch.testing.assert_close(
        found, giou_matrix(box, moved).float(), atol=1e-4, rtol=0
    )
    assert strip_similarity(rows, rows + shift) == found[0]


def test_strips_match_the_nearest_lane():
    teacher = torch.tensor([0.2, 0.5, 0.8])[:, None].expand(3, 6)
    student = teacher.flip(0) + 0.004
    match = match_queries(
        student[None], teacher[None], [teacher[1:2]], metric='strip'
    )
    # Only the middle lane is an object.
    assert match.student.tolist() == match.teacher.tolist() == [1]
    pairs = match_queries(
        student[None], teacher[None], [teacher], metric='strip'
    )
    assert pairs.teacher.tolist() == [2, 1, 0]


def test_giou_agrees_with_mmdet():
    overlaps = pytest.importorskip('mmdet.structures.bbox').bbox_overlaps
    one, two = boxes_of(7), boxes_of(9, seed=1)
    expected = overlaps(to_corners(one), to_corners(two), mode='giou')
    torch.testing.assert_close(giou_matrix(one, two), expected)


def test_giou_of_boxes_without_area_is_finite():
    point = torch.tensor([[0.5, 0.5, 0.0, 0.0]], requires_grad=True)
    value = giou_matrix(point, point.detach())
    value.sum().backward()
    assert value.isfinite().all()
    assert point.grad.isfinite().all()


def test_nwd():
    one = boxes_of(6)
    size = (100, 200)
    own = nwd_matrix(one, one, image_size=size)
    torch.testing.assert_close(own.diagonal(), torch.ones(6))
    torch.testing.assert_close(own, own.T)
    assert 0 < own.min() <= own.max() <= 1
    # 3 pixels right, 4 down, 6 wider: W^2 = 9 + 16 + 36 / 4
    a = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    b = a + torch.tensor([3 / 200, 4 / 100, 6 / 200, 0.0])
    torch.testing.assert_close(
        nwd_matrix(a, b, image_size=size),
        torch.full((1, 1), math.exp(-math.sqrt(34) / 12.8)),
    )
    # A tiny box that is off by its own size: no overlap, yet near.
    tiny = torch.tensor([[0.5, 0.5, 0.02, 0.02]])
    shifted = tiny + torch.tensor([0.03, 0.0, 0.0, 0.0])
    assert giou_matrix(tiny, shifted) < 0
    assert nwd_matrix(tiny, shifted, image_size=(100, 100)) > 0.7


def test_similarity_refuses():
    box = boxes_of(1)
    with pytest.raises(ValueError, match="metric='iou': choose one of"):
        similarity_matrix(box, box, metric='iou')
    with pytest.raises(ValueError, match='give image_size'):
        similarity_matrix(box, box, metric='nwd')


def test_foreground_by_hand():
    truth = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.2, 0.2]])
    queries = torch.tensor(
        [
            [0.25, 0.25, 0.5, 0.5],  # the first object
            [0.35, 0.25, 0.5, 0.5],  # near it: GIoU .4 / .6
            [0.5, 0.25, 0.5, 0.5],  # GIoU 1 / 3
            [0.75, 0.75, 0.3, 0.3],  # best of the second: GIoU 4 / 9
            [0.75, 0.2, 0.1, 0.1],
        ]
    )
    kept = foreground_queries(queries, truth, tau=0.6)
    assert kept.tolist() == [True, True, False, True, False]
    kept = foreground_queries(queries, truth, tau=0.7)
    assert kept.tolist() == [True, False, False, True, False]


@pytest.mark.parametrize('metric', ['giou', 'nwd'])
def test_tau_of_one_keeps_nothing(metric):
    queries = boxes_of(20)
    kept = foreground_queries(
        queries, queries[:4], tau=1.0, metric=metric, image_size=(64, 96)
    )
    assert not kept.any()
    below = foreground_queries(
        queries, queries[:4], tau=0.999, metric=metric, image_size=(64, 96)
    )
    assert below[:4].all()


def test_objects_without_a_near_query_are_clamped():
    truth = torch.tensor([[0.1, 0.1, 0.1, 0.1]])
    queries = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.9, 0.9, 0.1, 0.1]])
    assert giou_matrix(truth, queries).max() < 0
    # tau G is above G where G < 0: without the clamp it would be the others
    for tau in (0.0, 0.6, 1.0):
        assert not foreground_queries(queries, truth, tau=tau).any()


def test_no_object_no_foreground():
    kept = foreground_queries(boxes_of(5), torch.zeros(0, 4))
    assert kept.shape == (5,)
    assert not kept.any()
    assert foreground_queries(torch.zeros(0, 4), boxes_of(2)).shape == (0,)


@pytest.mark.parametrize('tau', [-0.1, 1.1])
def test_tau_that_cannot_be(tau):
    with pytest.raises(ValueError, match=f'tau={tau}'):
        foreground_queries(boxes_of(2), boxes_of(1), tau=tau)


@pytest.mark.parametrize('one_to_one', [False, True])
def test_partner_of_oneself(one_to_one):
    boxes = boxes_of(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    found = teacher_partners(boxes[:5], boxes[order], one_to_one=one_to_one)
    assert torch.equal(order[found], torch.arange(5))


def test_argmax_may_share_a_partner_and_one_to_one_not():
    student = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.51, 0.5, 0.2, 0.2]])
    teacher = torch.tensor(
        [[0.5, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]
    )
    assert teacher_partners(student, teacher).tolist() == [0, 0]
    found = teacher_partners(student, teacher, one_to_one=True)
    assert found.tolist() == [0, 1]
    lacking = teacher_partners(student, teacher[:1], one_to_one=True)
    assert lacking.tolist() == [0, -1]
    with pytest.raises(ValueError, match='no queries'):
        teacher_partners(student, teacher[:0])


def test_weights_of_the_partner_score():
    student = torch.tensor([[0.5, 0.5, 0.4, 0.4]])
    teacher = torch.tensor(
        [
            [0.5, 0.5, 0.3, 0.3],  # inside: L1 .2
            [0.59, 0.59, 0.4, 0.4],
        ]
    )  # moved: L1 .18
    assert giou_matrix(student, teacher).argmax() == 0
    assert teacher_partners(student, teacher, mu1=1, mu2=0).item() == 0
    assert teacher_partners(student, teacher, mu1=0, mu2=1).item() == 1
    assert teacher_partners(student, teacher).item() == 0
    assert teacher_partners(student, teacher, mu1=0.05).item() == 1


def test_a_batch_is_matched_image_by_image():
    student = torch.stack(
        [boxes_of(8), boxes_of(8, seed=3), boxes_of(8, seed=4)]
    )
    teacher = student.flip(1)
    truths = [student[0, :2], torch.zeros(0, 4), student[2, 5:6]]
    match = match_queries(student, teacher, truths, tau=0.99)
    assert match.counts == (2, 0, 1)
    assert len(match) == 3
    assert match.image.tolist() == [0, 0, 2]
    assert match.student.tolist() == [0, 1, 5]
    assert match.teacher.tolist() == [7, 6, 2]
    assert torch.equal(match.of_student(student), match.of_teacher(teacher))
    none = match_queries(student, teacher, [torch.zeros(0, 4)] * 3)
    assert len(none) == 0
    assert none.of_student(student).shape == (0, 4)


def test_surplus_students_have_no_pair():
    student = boxes_of(3)[None]
    match = match_queries(
        student, student[:, :1], [student[0]], tau=0.0, one_to_one=True
    )
    assert match.student.tolist() == [0]
    assert match.counts == (1,)


def test_all_queries():
    match = all_queries(torch.zeros(2, 3, 4))
    assert match.image.tolist() == [0, 0, 0, 1, 1, 1]
    assert match.student.tolist() == match.teacher.tolist() == [0, 1, 2] * 2
    assert match.counts == (3, 3)
