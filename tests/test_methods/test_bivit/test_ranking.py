"""The order of attention."""

import pytest
import torch

from taskptq.core.settings import SettingError
from taskptq.methods.bivit import RankingLoss, ranking_hinge

TEACHER = torch.tensor([0.6, 0.3, 0.1])
STUDENT = torch.tensor([0.3, 0.4, 0.3])


@pytest.mark.parametrize(('margin', 'value'), [(0.0, 0.1), (0.05, 0.2)])
def test_golden_hinges(margin, value):
    found = ranking_hinge(STUDENT, TEACHER, margin=margin)
    assert found[0].item() == pytest.approx(value, abs=1e-6)
    assert found[1].item() == 3


def test_pairs_without_an_order_do_not_count():
    found = ranking_hinge(STUDENT, TEACHER, gap=0.25)
    assert found[1].item() == 2


def test_the_order_of_the_teacher_costs_nothing():
    ranks = torch.tensor([[9.0, 5.0, 1.0]])
    assert ranking_hinge(ranks, TEACHER[None])[0, 0].item() == 0


def test_loss_counts_in_units_of_uniform_attention():
    # Three keys: hinges of .1 x 3 over three pairs.
    loss = RankingLoss(margin=0, gap=0).compare(STUDENT[None], TEACHER[None])
    assert loss.item() == pytest.approx(0.1, abs=1e-6)


def test_top_keys_are_compared_with_others():
    teacher = torch.arange(100.0, 0, -1)[None].softmax(dim=-1)
    turned = teacher.flip(-1)
    loss = RankingLoss(top=4, margin=0, gap=0)
    assert loss.compare(teacher, teacher).item() == 0
    assert loss.compare(turned, teacher).item() > 0
    # A swap among keys that are never compared is not seen.
    other = teacher.clone()
    other[0, [50, 51]] = teacher[0, [51, 50]]
    assert loss.compare(other, teacher).item() == 0


def test_rows_are_bounded():
    teacher = torch.rand(2, 4, 50, 6).softmax(dim=-1)
    student = torch.rand(2, 4, 50, 6).softmax(dim=-1)
    rows = [0, 24, 49]
    few = RankingLoss(max_rows=3).compare(student, teacher)
    torch.testing.assert_close(
        few,
        RankingLoss().compare(student[:, :, rows], teacher[:, :, rows]),
    )


def test_gradient_lifts_what_ranks_too_low():
    student = STUDENT[None].clone().requires_grad_()
    RankingLoss(margin=0, gap=0).compare(student, TEACHER[None]).backward()
    assert student.grad[0, 0] < 0 < student.grad[0, 1]


@pytest.mark.parametrize('name', ['top', 'margin', 'gap', 'max_rows'])
def test_settings_are_checked(name):
    with pytest.raises(SettingError, match=name):
        RankingLoss(**{name: -1})
