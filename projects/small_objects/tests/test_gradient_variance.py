"""Statistics of localization gradients, by hand and through real layers."""

import json

import pytest
import torch
from torch import nn

from small_objects.analysis.gradient_variance import (
    GradientVariance,
    compare_variances,
    place_gradients,
    watch_outputs,
)


def test_statistics_by_hand():
    found = GradientVariance()
    # Two positives of small boxes, one of a large one, one negative place.
    gradient = torch.tensor([[1.0, 0], [0, 1.0], [3.0, 0], [0, 0]])
    weight = torch.eye(2)
    sizes = torch.tensor([[10.0], [20.0], [100.0], [10.0]])
    found.add(gradient, weight=weight, sizes=sizes, factor=2.0)
    stats = found.to_dict()
    json.dumps(stats, allow_nan=False)
    small = stats['small']
    assert small['count'] == 2
    assert small['mean_norm'] == pytest.approx(2)
    # Power 4, squared mean (1, 1): 2.
    assert small['variance'] == pytest.approx(2)
    assert small['relative_variance'] == pytest.approx(0.5)
    assert small['norm_spread'] == pytest.approx(0, abs=1e-6)
    assert stats['large']['count'] == 1
    assert stats['medium'] == {
        'count': 0,
        'mean_norm': None,
        'variance': None,
        'relative_variance': None,
        'norm_spread': None,
    }


def test_gradients_at_the_input_of_a_linear_layer():
    layer = nn.Linear(6, 4, bias=False)
    x = torch.randn(5, 6, requires_grad=True)
    with watch_outputs(layer) as outputs:
        layer(x).square().sum().backward(retain_graph=True)
    assert len(outputs) == 1
    (gradient,) = torch.autograd.grad(outputs[0].square().sum(), outputs)
    torch.testing.assert_close(gradient @ layer.weight, x.grad)
    found = GradientVariance()
    found.add(gradient, weight=layer.weight, sizes=torch.full((5, 1), 8.0))
    assert found.to_dict()['small']['mean_norm'] == pytest.approx(
        float(x.grad.norm(dim=1).mean()), rel=1e-5
    )


def test_a_convolution_pulls_its_patch():
    layer = nn.Conv2d(3, 2 * 4, 3, padding=1, bias=False)
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    output = layer(x)
    # A single positive: prior 1 of place (2, 2).
    output[0, 4:, 2, 2].sum().backward()
    gradient = torch.zeros_like(output)
    gradient[0, 4:, 2, 2] = 1
    found = GradientVariance()
    found.add(gradient, weight=layer.weight, sizes=torch.full((25, 2), 40.0))
    stats = found.to_dict()
    assert stats['medium']['count'] == 1
    assert stats['medium']['mean_norm'] == pytest.approx(
        float(x.grad.norm()), rel=1e-5
    )


def test_places_are_in_the_order_of_rows_and_columns():
    gradient = torch.arange(2 * 6 * 2 * 3).view(2, 6, 2, 3)
    places = place_gradients(gradient, num_priors=2)
    assert places.shape == (12, 2, 3)
    assert torch.equal(places[4], gradient[0, :, 1, 1].view(2, 3))


def test_a_noisier_head_is_noisier():
    generator = torch.Generator().manual_seed(0)
    direction = torch.tensor([1.0, 1.0, 1.0])
    stats = []
    for noise in (2.0, 0.2):
        found = GradientVariance()
        gradient = direction + noise * torch.randn(500, 3, generator=generator)
        found.add(
            gradient, weight=torch.eye(3), sizes=torch.full((500, 1), 10.0)
        )
        stats.append(found.to_dict())
    ratios = compare_variances(*stats)
    assert all(value > 2 for value in ratios['small'].values())
    assert set(ratios['large'].values()) == {None}


def test_sizes_must_fit():
    found = GradientVariance()
    with pytest.raises(ValueError, match='do not fit'):
        found.add(
            torch.ones(4, 4), weight=torch.eye(4), sizes=torch.ones(3, 1)
        )
    with pytest.raises(ValueError, match='one name more'):
        GradientVariance(edges=(8.0,))
