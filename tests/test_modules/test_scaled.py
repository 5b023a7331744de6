"""Layers with scaled inputs, float and quantized."""

import copy

import pytest
import torch
from torch import nn

from taskptq.calibration import calibrate
from taskptq.core import QuantizerConfig, QuantSpec
from taskptq.core.switches import float_only, quantizing
from taskptq.hosts.class_lookup import lookup
from taskptq.modules.base import Scheme
from taskptq.modules.scaled import (
    QuantScaledConv2d,
    QuantScaledLinear,
    ScaledConv2d,
    ScaledLinear,
)
from taskptq.prepare import QConfig, prepare

SCHEME = Scheme(
    weight=QuantizerConfig(spec=QuantSpec(symmetric=True), per_channel=True),
    activation=QuantizerConfig(),
)
LAYERS = [
    (nn.Conv2d(4, 6, 3, padding=1, groups=2), ScaledConv2d, (2, 4, 5, 5)),
    (nn.Linear(4, 6), ScaledLinear, (2, 5, 4)),
]


def factors(layer):
    with torch.no_grad():
        layer.input_factor.copy_(torch.tensor([0.5, 1, 2, 4]))
    return layer


@pytest.mark.parametrize(('layer', 'cls', 'shape'), LAYERS)
def test_float(layer, cls, shape):
    x = torch.randn(shape)
    scaled = cls.wrap(copy.deepcopy(layer))
    assert isinstance(scaled, type(layer))
    assert torch.equal(scaled(x), layer(x))
    factors(scaled)
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    ones = [1] * x.dim()
    ones[axis] = 4
    expected = layer(x * scaled.input_factor.reshape(ones))
    torch.testing.assert_close(scaled(x), expected)
    assert 'input_factor' in scaled.state_dict()


def test_offsets():
    layer = nn.Conv2d(4, 6, 1)
    x = torch.randn(2, 4, 5, 5)
    scaled = factors(ScaledConv2d.wrap(layer, shifted=True))
    with torch.no_grad():
        scaled.input_offset.copy_(torch.tensor([1.0, 0, -1, 3]))
    moved = x * scaled.input_factor[:, None, None]
    moved = moved + scaled.input_offset[:, None, None]
    torch.testing.assert_close(scaled(x), layer(moved))
    plain = ScaledConv2d.wrap(layer)
    assert 'input_offset' in scaled.state_dict()
    assert 'input_offset' not in plain.state_dict()


def test_counterparts():
    for layer, cls, quant in (
        (LAYERS[0][0], ScaledConv2d, QuantScaledConv2d),
        (LAYERS[1][0], ScaledLinear, QuantScaledLinear),
    ):
        scaled = cls.wrap(layer)
        assert lookup(scaled) is quant
        assert isinstance(quant.from_float(scaled, scheme=SCHEME), cls)


@pytest.mark.parametrize(('layer', 'cls', 'shape'), LAYERS)
def test_the_grid_is_that_of_the_scaled_input(layer, cls, shape):
    scaled = factors(cls.wrap(copy.deepcopy(layer)))
    model = nn.Sequential(scaled).eval()
    x = torch.rand(shape)
    expected = model(x).detach()
    prepare(model, QConfig.from_dict({}), batch=x)
    calibrate(model, [x], forward=lambda m, batch: m(batch))
    with float_only(model):
        torch.testing.assert_close(model(x).detach(), expected)
    quant = model[0]
    highest = float(quant.scaled_input(x).max())
    ends = quant.input_quantizer
    assert float(ends.scale) * 255 == pytest.approx(highest, rel=1e-5)
    with quantizing(model):
        y = model(x).detach()
    assert not torch.equal(y, expected)
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)
    copied = copy.deepcopy(model)
    with quantizing(copied):
        assert torch.equal(copied(x).detach(), y)
