"""Weights by entropy."""

import pytest
import torch

from taskptq.methods.db_llm import (
    ambiguity_weights,
    binary_entropy,
    class_entropy,
)


def test_entropy_is_relative_to_its_maximum():
    p = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(
        class_entropy(p, dim=1), torch.tensor([1.0, 0.0, 0.5])
    )
    torch.testing.assert_close(
        binary_entropy(torch.tensor([0.0, 0.5, 1.0])),
        torch.tensor([0.0, 1.0, 0.0]),
    )


def test_power_zero_is_plain_distillation():
    entropy = torch.tensor([0.0, 0.3, 1.0])
    assert torch.equal(ambiguity_weights(entropy, power=0), torch.ones(3))


def test_weights_rise_with_doubt_and_have_mean_one():
    weights = ambiguity_weights(torch.tensor([0.0, 0.5, 1.0]), eps=0.1)
    assert weights.mean().item() == pytest.approx(1)
    torch.testing.assert_close(
        weights / weights[0], torch.tensor([1.0, 6.0, 11.0])
    )
