"""Normalized Gram matrices of tokens."""

import pytest
import torch

from taskptq.core.settings import SettingError
from taskptq.methods.qvit import GramLoss, gram_distance, normalized_gram

QUERIES = torch.tensor([[1.0, 0.0], [1.0, 1.0]])


def test_golden_matrix():
    expected = torch.tensor([[0.377964, 0.377964], [0.377964, 0.755929]])
    torch.testing.assert_close(
        normalized_gram(QUERIES), expected, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        normalized_gram(torch.eye(2)), torch.eye(2) / 2**0.5
    )


def test_golden_distance_and_scale():
    distance = gram_distance(torch.eye(2), QUERIES)
    assert distance.item() == pytest.approx(0.629629, abs=1e-6)
    assert gram_distance(2 * QUERIES, QUERIES).item() < 1e-6


def test_gradient_at_zero_is_zero():
    student = QUERIES.clone().requires_grad_()
    gram_distance(student, QUERIES).backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_loss_is_the_mean_over_heads_and_bounds_tokens():
    student = torch.stack([torch.eye(2), 2 * QUERIES])
    teacher = torch.stack([QUERIES, QUERIES])
    loss = GramLoss().compare(student, teacher)
    assert loss.item() == pytest.approx(0.629629 / 2, abs=1e-5)
    many = torch.randn(1, 9, 4)
    few = many[:, [0, 4, 8]]
    noise = torch.randn(1, 9, 4)
    torch.testing.assert_close(
        GramLoss(max_tokens=3).compare(noise, many),
        GramLoss().compare(noise[:, [0, 4, 8]], few),
    )


def test_widths_may_differ():
    wide = torch.cat([QUERIES, torch.zeros(2, 3)], dim=1)
    assert GramLoss().compare(QUERIES, wide).item() < 1e-6


def test_settings_are_checked():
    with pytest.raises(SettingError, match='max_tokens=1'):
        GramLoss(max_tokens=1)
