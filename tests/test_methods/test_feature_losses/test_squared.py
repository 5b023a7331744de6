"""Squared error and distance of rows."""

import pytest
import torch

from taskptq.core.settings import SettingError
from taskptq.methods.feature_losses import (
    FeatureDistanceLoss,
    SquaredFeatureLoss,
)

TEACHER = torch.tensor([[3.0, 4.0], [0.0, 5.0]])
STUDENT = torch.tensor([[3.0, 4.0], [3.0, 1.0]])
SECOND = torch.tensor([0.0, 1.0])


@pytest.mark.parametrize(
    ('loss', 'weights', 'value'),
    [
        (SquaredFeatureLoss(normalize=False), None, 25 / 4),
        (SquaredFeatureLoss(), None, 0.5),
        (SquaredFeatureLoss(normalize=False), SECOND, 25 / 2),
        (SquaredFeatureLoss(), SECOND, 1.0),
        (FeatureDistanceLoss(), None, 2.5),
        (FeatureDistanceLoss(normalize=True), None, 0.5),
        (FeatureDistanceLoss(), SECOND, 5.0),
    ],
)
def test_values(loss, weights, value):
    found = loss.compare(STUDENT, TEACHER, weights=weights)
    assert found.item() == pytest.approx(value)


def test_equal_features_have_no_gradient():
    student = TEACHER.clone().requires_grad_()
    loss = FeatureDistanceLoss().compare(student, TEACHER)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize('kind', [FeatureDistanceLoss, SquaredFeatureLoss])
def test_settings_are_checked(kind):
    with pytest.raises(SettingError, match='normalize'):
        kind(normalize='yes')
