"""Likelihood with a variance for each channel."""

import math

import pytest
import torch

from taskptq.methods.ida_det import GaussianLikelihoodLoss, gaussian_nll


def test_values_at_and_beside_the_minimum():
    error = torch.tensor(0.04)
    assert gaussian_nll(error, torch.tensor(0.0)).item() == pytest.approx(0.04)
    least = gaussian_nll(error, error.log()).item()
    assert least == pytest.approx(-2.218876, abs=1e-6)
    for shift in (-0.1, 0.1):
        assert gaussian_nll(error, error.log() + shift).item() > least


def test_the_log_variance_is_clamped():
    value = gaussian_nll(torch.tensor(1.0), torch.tensor(-50.0))
    assert value.item() == pytest.approx(math.exp(10) - 10)


def test_loss_is_the_minimum_channel_by_channel():
    teacher = torch.zeros(2, 2)
    student = torch.tensor([[0.2, 3.0], [0.2, 3.0]], requires_grad=True)
    loss = GaussianLikelihoodLoss().compare(student, teacher)
    expected = 1 + (math.log(0.04) + math.log(9.0)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    # d log E e^2: each channel's error counts relative to its size.
    torch.testing.assert_close(
        student.grad, torch.tensor([[0.5 / 0.2, 0.5 / 3.0]] * 2)
    )


def test_weights_and_equal_features():
    teacher = torch.zeros(2, 1)
    student = torch.tensor([[0.2], [9.0]])
    first = torch.tensor([1.0, 0.0])
    found = GaussianLikelihoodLoss().compare(student, teacher, weights=first)
    assert found.item() == pytest.approx(1 + math.log(0.04), rel=1e-5)
    same = GaussianLikelihoodLoss().compare(teacher, teacher)
    assert same.item() == pytest.approx(-10)
