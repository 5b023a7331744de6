"""Divergence of logits."""

import math

import pytest
import torch

from taskptq.core.settings import SettingError
from taskptq.methods.feature_losses import FeatureDivergenceLoss


def test_softmax():
    teacher = torch.tensor([[math.log(3.0), 0.0]])  # .75, .25
    student = torch.zeros(1, 2)
    value = FeatureDivergenceLoss().compare(student, teacher)
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert value.item() == pytest.approx(expected)


def test_sigmoid_sums_over_independent_classes():
    teacher = torch.tensor([[math.log(3.0), math.log(3.0)]])
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    value = FeatureDivergenceLoss(kind='sigmoid').compare(
        torch.zeros(1, 2), teacher
    )
    assert value.item() == pytest.approx(2 * one)


def test_weights_and_temperature():
    teacher = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    student = torch.zeros(2, 2)
    first = torch.tensor([1.0, 0.0])
    loss = FeatureDivergenceLoss(temperature=2.0)
    alone = loss.compare(student, teacher, weights=first)
    assert alone.item() == pytest.approx(
        4
        * FeatureDivergenceLoss().compare(student[:1], teacher[:1] / 2).item()
    )
    assert loss.compare(student, teacher).item() == pytest.approx(
        alone.item() / 2
    )


@pytest.mark.parametrize(
    ('settings', 'words'),
    [({'kind': 'tanh'}, 'kind'), ({'temperature': 0}, 'temperature=0')],
)
def test_settings_are_checked(settings, words):
    with pytest.raises(SettingError, match=words):
        FeatureDivergenceLoss(**settings)
