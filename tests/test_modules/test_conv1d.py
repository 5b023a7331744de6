"""Counterparts of 1-d convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from taskptq.core import quantizing
from taskptq.hosts import lookup
from taskptq.modules.conv1d import QuantConv1d, QuantConvTranspose1d

CASES: list[tuple[type[nn.Module], dict[str, Any]]] = [
    (nn.Conv1d, {'padding': 1}),
    (nn.Conv1d, {'groups': 2, 'stride': 2}),
    (nn.Conv1d, {'padding': 1, 'padding_mode': 'reflect'}),
    (nn.ConvTranspose1d, {'stride': 2, 'output_padding': 1}),
    (nn.ConvTranspose1d, {'groups': 2}),
]


@pytest.mark.parametrize(('cls', 'settings'), CASES)
@torch.no_grad()
def test_off_is_float_and_on_is_near(
    lab: Any, cls: Any, settings: Any
) -> None:
    torch.manual_seed(0)
    layer, x = cls(4, 6, 3, **settings), torch.randn(2, 4, 9)
    expected = layer(x)
    found = lookup(layer)
    assert found is not None
    quant: Any = found.from_float(layer, scheme=lab.scheme(weight=8))
    torch.testing.assert_close(quant(x), expected)
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        gap = (quant(x) - expected).abs().max() / expected.abs().max()
    assert 0 < gap < 0.03
    assert quant.weight_quantizer.scale.numel() == 6


def test_layers_are_looked_up() -> None:
    assert lookup(nn.Conv1d(1, 1, 1)) is QuantConv1d
    assert lookup(nn.ConvTranspose1d(1, 1, 1)) is QuantConvTranspose1d


@torch.no_grad()
def test_output_size_is_kept(lab: Any) -> None:
    layer, x = nn.ConvTranspose1d(2, 2, 3, stride=2), torch.ones(1, 2, 4)
    expected = layer(x, output_size=[10])
    quant = QuantConvTranspose1d.from_float(layer, scheme=lab.scheme())
    assert torch.equal(quant(x, output_size=[10]), expected)


@torch.no_grad()
def test_depthwise_input_alone_has_a_scale_for_each_channel(lab: Any) -> None:
    torch.manual_seed(0)
    scheme = lab.scheme(weight=8)
    activation = scheme.activation
    assert activation is not None
    object.__setattr__(activation, 'per_channel', True)
    layer = nn.Conv1d(3, 3, 3, groups=3)
    quant = QuantConv1d.from_float(layer, scheme=scheme)
    x = torch.randn(2, 3, 8)
    lab.calibrate(quant, lambda m: m(x))
    assert quant.input_quantizer.scale.numel() == 3
    with quantizing(quant):
        torch.testing.assert_close(quant(x[0]), quant(x)[0])
