"""Copies of channels: exact, resized, and checked when read."""

import copy

import pytest
import torch
from torch import nn

from taskptq.methods.channel_split.copies import (
    Copies,
    apply_copies,
    put_back,
    read_copies,
    tensors_of,
)

COPIES = Copies(giver='0', norm='', readers=('2',), counts=(3, 1, 1, 1))
NORMED = Copies(giver='0', norm='1', readers=('3',), counts=(1, 2, 1, 4))


def linears():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def convs():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2)
    return model.double()


@pytest.mark.parametrize(
    ('make', 'copies', 'shape'),
    [(linears, COPIES, (5, 3)), (convs, NORMED, (2, 3, 6, 6))],
)
def test_exact_and_resized(make, copies, shape):
    model = make()
    x = torch.randn(shape).double()
    expected = model(x).detach()
    before = tensors_of(model, [copies])
    state = copy.deepcopy(model.state_dict())
    apply_copies(model, copies)
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-12, atol=0)
    width = sum(copies.counts)
    reader = model.get_submodule(copies.readers[0])
    assert model[0].weight.shape[0] == reader.weight.shape[1] == width
    text = repr(model)
    assert str(width) in text
    fresh = make()
    apply_copies(fresh, read_copies(fresh, copies.to_dict()))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    put_back(model, before)
    assert repr(model) == repr(make())
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_outlines_are_resized_too():
    model = convs().to('meta')
    apply_copies(model, NORMED)
    assert model[3].weight.shape == (5, 8, 3, 3)
    assert model[1].running_var.shape == (8,)


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'giver': 'neck'}, "'neck' is no layer"),
        ({'giver': '2'}, "'2' is no layer"),
        ({'giver': None}, "'None' is no layer"),
        ({'readers': []}, 'no readers'),
        ({'readers': '3'}, 'no readers'),
        ({'readers': ['2']}, "'2' is no layer"),
        ({'norm': '2'}, "'2' does not normalize '0'"),
        ({'norm': 3}, "'3' does not normalize '0'"),
        ({'counts': [1, 1, 1]}, 'do not fit'),
        ({'counts': [1, 0, 1, 1]}, 'do not fit'),
        ({'counts': [1, 2.0, 1, 1]}, 'do not fit'),
        ({'counts': [1, True, 1, 1]}, 'do not fit'),
        ({'counts': [1, 10**9, 1, 1]}, 'do not fit'),
        ({'counts': [3, 3, 3, 3]}, 'do not fit'),
        ({'counts': None}, 'do not fit'),
        ({'more': 1}, 'malformed'),
    ],
)
def test_what_does_not_fit(change, reason):
    plain = {**NORMED.to_dict(), **change}
    with pytest.raises(ValueError, match=reason):
        read_copies(convs(), plain)
    assert read_copies(convs(), NORMED.to_dict()) == NORMED
