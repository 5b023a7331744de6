"""Searched exponents: the readers' error falls, and only where it can."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.methods.equalization.rewrite import CrossLayerEqualization
from taskptq.methods.equalization.scale_groups import find_layer_groups
from taskptq.methods.equalization.search import group_errors, no_change
from taskptq.prepare import QConfig

from ..conftest import stats_of  # isort: skip


def separable(seed=0):
    """1x1, depthwise and 1x1 convolutions, channels of uneven size."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1, bias=False),
        nn.BatchNorm2d(6),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        for layer in (model[0], model[3]):
            rows = (1.5 * torch.randn(8, generator=generator)).exp()
            layer.weight.mul_(
                rows.reshape(-1, *[1] * (layer.weight.dim() - 1))
            )
            layer.bias.mul_(rows)
        model[6].running_var.fill_(4)
    return model


def stats_for(*, bits=4, **qconfig):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    stats = stats_of((x,))
    settings = {
        'weight': {'num_bits': bits},
        'activation': {'num_bits': bits},
        'edge_bits': None,
        **qconfig,
    }
    return SimpleNamespace(
        batches=stats.batches,
        forward=stats.forward,
        qconfig=QConfig.from_dict(settings),
    )


def test_error_falls_through_a_depthwise_convolution():
    model, stats = separable(), stats_for()
    (x,) = stats.batches[0]
    expected = model(x).detach()
    report = CrossLayerEqualization(alpha='search')(model, stats)
    assert [(entry.name, entry.status) for entry in report.entries] == [
        ('2', 'applied'),
        ('5', 'applied'),
    ]
    for entry in report.entries:
        details = entry.details
        assert details['error_after'] < 0.8 * details['error_before']
        assert details['alpha'] in [step / 20 for step in range(20)]
    torch.testing.assert_close(
        model(x).detach(), expected, rtol=1e-4, atol=1e-4
    )


def test_never_worse_than_a_fixed_exponent():
    stats = stats_for()
    found = {}
    for alpha in ('search', 0.5):
        model = separable()
        CrossLayerEqualization(alpha=alpha)(model, stats)
        groups = find_layer_groups(
            model, lambda model=model: model(*stats.batches[0])
        )
        errors = group_errors(model, groups, stats)
        found[alpha] = {
            name: one.total(torch.ones(8)) for name, one in errors.items()
        }
    for name, error in found['search'].items():
        assert error <= found[0.5][name] * (1 + 1e-3)


def test_what_has_scales_per_channel_stays():
    stats = stats_for(activation={'num_bits': 4, 'per_channel': True})
    report = CrossLayerEqualization(alpha='search')(separable(), stats)
    depthwise, pointwise = report.entries
    assert depthwise.status == 'unchanged'
    assert 'a scale for each channel already' in depthwise.reason
    assert pointwise.status == 'applied'


def test_what_stays_float_stays():
    stats = stats_for(keep_float=['5'])
    model = separable()
    before = model[5].weight.clone()
    entry = CrossLayerEqualization(alpha='search', patterns=['5'])(
        model, stats
    ).entries[0]
    assert entry.status == 'unchanged'
    assert entry.reason == 'none of its readers is quantized'
    assert torch.equal(model[5].weight, before)


def test_even_channels_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[1].weight.fill_(1)
        model[0].bias.zero_()
    x = torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]])
    report = CrossLayerEqualization(alpha='search')(model, stats_of((x,)))
    assert report.entries[0].status == 'unchanged'
    assert 'no exponent lowers' in report.entries[0].reason


def test_gains_are_those_of_the_next_norm():
    model, stats = separable(), stats_for()
    groups = find_layer_groups(model, lambda: model(*stats.batches[0]))
    pointwise = groups[-1]
    gains = pointwise.gains['5']
    torch.testing.assert_close(
        gains, model[6].weight.detach().double() / (4 + 1e-5) ** 0.5
    )
    errors = group_errors(model, groups, stats)[pointwise.name]
    assert errors.readers[0].gains is gains
    assert not no_change(errors)


def test_bad_argument():
    with pytest.raises(ValueError, match='alpha='):
        CrossLayerEqualization(alpha='find')
