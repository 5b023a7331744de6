"""Which patches differ most."""

import pytest
import torch

from taskptq.methods.ida_det import (
    information_discrepancy,
    select_pairs,
    spatial_softmax,
)

TEACHER = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
MOVED = torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]])
WEAKER = torch.tensor([[[[0.8, 0.0], [0.0, 0.0]]]])


def test_softmax_of_a_patch():
    expected = torch.tensor([0.475367, 0.174878, 0.174878, 0.174878])
    torch.testing.assert_close(
        spatial_softmax(TEACHER)[0, 0], expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ('student', 'score'), [(MOVED, 10.6660), (WEAKER, 0.239532)]
)
def test_a_moved_response_is_farther_than_a_weaker_one(student, score):
    found = information_discrepancy(student, TEACHER)
    assert found.item() == pytest.approx(score, rel=1e-4)


def test_channels_add_up_and_constants_are_finite():
    two = torch.cat([MOVED, MOVED], dim=1)
    one = information_discrepancy(MOVED, TEACHER)
    both = information_discrepancy(two, torch.cat([TEACHER, TEACHER], dim=1))
    torch.testing.assert_close(both, 2 * one)
    flat = torch.zeros(1, 1, 2, 2)
    assert information_discrepancy(flat, flat).item() == 0


def test_selection_takes_the_moved_one():
    scores = torch.cat(
        [
            information_discrepancy(student, TEACHER)
            for student in (MOVED, WEAKER)
        ]
    )
    kept = select_pairs(scores, torch.zeros(2), share=0.5)
    assert kept.tolist() == [0]


def test_each_image_keeps_its_own_share():
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 0.1, 0.2])
    images = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    # ceil(.6 x 5) is 3, though .6 x 5 is a little above 3 in binary.
    assert select_pairs(scores, images, share=0.6).tolist() == [2, 3, 4, 5, 6]
    assert select_pairs(scores, images, share=0.2).tolist() == [4, 6]
    assert select_pairs(scores, images, share=1.0).tolist() == list(range(7))
    assert not len(select_pairs(scores[:0], images[:0], share=0.5))
