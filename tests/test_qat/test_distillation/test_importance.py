"""Weights of positions."""

from types import SimpleNamespace

import pytest
import torch

from taskptq.core.settings import SettingError
from taskptq.qat.distillation.importance import WEIGHTS, fitted

FEATURE = torch.zeros(1, 5, 2, 2)
PROXY = torch.tensor([[[[0.9, 0.1], [0.1, 0.1]]]])


def scene(values):
    return SimpleNamespace(foreground=lambda: values, doubt=lambda: values)


def test_uniform_has_no_weights():
    assert WEIGHTS['uniform']().of(None, FEATURE) is None


def test_foreground_is_relative_to_its_mean():
    weights = WEIGHTS['foreground']().of(scene([PROXY]), FEATURE)
    assert weights.mean().item() == pytest.approx(1)
    assert (weights[0, 0, 0, 0] / weights[0, 0, 1, 1]).item() == (
        pytest.approx(9)
    )
    floor = WEIGHTS['foreground'](floor=1.0).of(scene([PROXY]), FEATURE)
    assert torch.equal(floor, torch.ones_like(PROXY))


def test_entropy_is_a_power():
    found = WEIGHTS['entropy'](power=2, eps=0.1).of(scene([PROXY]), FEATURE)
    assert (found[0, 0, 0, 0] / found[0, 0, 1, 1]).item() == pytest.approx(25)


def test_values_come_from_the_map_nearest_in_size():
    fine, coarse = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 2, 2)
    assert torch.equal(fitted([fine, coarse], FEATURE, name='a'), coarse)
    resized = fitted([torch.ones(1, 1, 4, 4)], FEATURE, name='a')
    assert torch.equal(resized, torch.ones(1, 1, 2, 2))


def test_queries_have_rows():
    one, two = torch.rand(2, 3, 1), torch.rand(2, 3, 1)
    found = fitted([one, two, PROXY], torch.zeros(2, 3, 8), name='a')
    assert torch.equal(found, torch.maximum(one, two))


def test_nothing_that_fits_is_refused():
    with pytest.raises(ValueError, match=r"'entropy' has no value .*uniform"):
        fitted([torch.rand(2, 7, 1)], torch.zeros(2, 3, 8), name='entropy')


@pytest.mark.parametrize(
    ('kind', 'settings'),
    [
        ('foreground', {'floor': 2}),
        ('entropy', {'power': -1}),
        ('entropy', {'eps': 'small'}),
    ],
)
def test_settings_are_checked(kind, settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        WEIGHTS[kind](**settings)
