"""Switchable atrous convolutions against mmcv's, deformable or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskptq.core import quantizing
from taskptq.hosts import lookup
from taskptq.modules import QuantModule, Scheme, counterpart_class
from taskptq.modules.switchable_conv import QuantSwitchableConv2d

ops = pytest.importorskip('mmcv.ops')
CASES = [
    {},
    {'use_deform': True},
    {'use_deform': True, 'stride': 2, 'groups': 2},
    {'stride': 2, 'groups': 2, 'bias': True},
]


def make(**settings: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = ops.SAConv2d(4, 8, 3, padding=1, **settings)
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.5)
    layer.weight_gamma.uniform_(0.5, 2)
    layer.weight_beta.normal_()
    layer.eval().requires_grad_(False)
    return layer, torch.randn(2, 4, 9, 11)


def swapped(layer: nn.Module, scheme: Scheme) -> QuantModule:
    found = lookup(layer)
    assert found is QuantSwitchableConv2d
    return counterpart_class(found, type(layer)).from_float(
        layer, scheme=scheme
    )


@pytest.mark.parametrize('settings', CASES)
def test_off_equals_the_host(lab: Any, settings: dict[str, Any]) -> None:
    layer, x = make(**settings)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    expected = layer(x)
    quant = swapped(layer, lab.scheme(weight=8, activation=8))
    gap = (quant(x) - expected).abs().max() / expected.abs().max()
    assert gap < 1e-5
    assert quant.state_dict().keys() >= before.keys()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize('settings', CASES)
def test_both_convolutions_are_quantized(
    lab: Any, settings: dict[str, Any]
) -> None:
    layer, x = make(**settings)
    expected = layer(x)
    quant = swapped(layer, lab.scheme(weight=8, activation=8))
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        found = quant(x)
    gap = (found - expected).abs().max() / expected.abs().max()
    assert 0 < gap < 0.05
    for name in quant.weight_slots:
        grid = quant.weight_quantizer_of(name)
        assert grid.scale.numel() == 8
        with quantizing(quant):
            assert not torch.equal(
                quant.quantized_weight(name), getattr(quant, name)
            )


def test_frozen_weights_give_the_same(lab: Any) -> None:
    layer, x = make(use_deform=True)
    quant = swapped(layer, lab.scheme(weight=4, activation=8))
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        before = quant(x)
        quant.freeze()
        assert torch.equal(quant(x), before)


def test_gradients_reach_both_weights(lab: Any) -> None:
    layer, x = make(use_deform=True)
    layer.requires_grad_(True)
    quant = swapped(layer, lab.scheme())
    quant(x).square().sum().backward()
    assert quant.weight.grad.abs().sum() > 0
    assert quant.weight_diff.grad.abs().sum() > 0
