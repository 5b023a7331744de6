"""Deformable convolutions against the operators of their hosts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskptq.core import quantizing
from taskptq.hosts import lookup
from taskptq.modules import QuantModule, Scheme, counterpart_class
from taskptq.modules.deform_conv import QuantDeformConv2d, sample


def hosts() -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        from mmcv import ops
    except ImportError:
        pass
    else:
        found |= {
            'v1': ops.DeformConv2d,
            'v1 pack': ops.DeformConv2dPack,
            'v2': ops.ModulatedDeformConv2d,
            'v2 pack': ops.ModulatedDeformConv2dPack,
        }
    try:
        from torchvision.ops import DeformConv2d
    except ImportError:
        pass
    else:
        found['torchvision'] = DeformConv2d
    return found


HOSTS = hosts()
CASES = [
    ('v1', {'deform_groups': 2, 'groups': 2, 'stride': 2, 'padding': 1}),
    ('v1 pack', {'padding': 1}),
    ('v2', {'deform_groups': 4, 'dilation': 2, 'padding': 2}),
    ('v2 pack', {'padding': 1, 'bias': True}),
    ('torchvision', {'padding': 1, 'groups': 4}),
]


def make(kind: str, settings: dict[str, Any]) -> tuple[nn.Module, Any]:
    if kind not in HOSTS:
        pytest.skip(f'{kind} is not installed')
    torch.manual_seed(0)
    layer = HOSTS[kind](8, 12, 3, **settings).eval().requires_grad_(False)
    for parameter in layer.parameters():
        parameter.normal_()
    x = torch.randn(2, 8, 9, 11)
    if kind.endswith('pack'):
        return layer, (x,)
    rows, columns = (5, 6) if 'stride' in settings else (9, 11)
    groups = settings.get('deform_groups', 1)
    offset = 3 * torch.randn(2, 2 * groups * 9, rows, columns)
    mask = torch.rand(2, groups * 9, rows, columns)
    return layer, (x, offset, mask)[: 2 if kind == 'v1' else 3]


def swapped(layer: nn.Module, scheme: Scheme) -> QuantModule:
    found = lookup(layer)
    assert found is not None
    return counterpart_class(found, type(layer)).from_float(
        layer, scheme=scheme
    )


@pytest.mark.parametrize(('kind', 'settings'), CASES)
def test_off_runs_the_host_and_on_multiplies_what_it_read(
    lab: Any, kind: str, settings: dict[str, Any]
) -> None:
    layer, inputs = make(kind, settings)
    expected = layer(*inputs)
    quant = swapped(layer, lab.scheme())
    assert torch.equal(quant(*inputs), expected)
    with quantizing(quant):  # without ranges, so nothing is rounded
        found = quant(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(('kind', 'settings'), CASES)
def test_sampled_values_and_weights_are_quantized(
    lab: Any, kind: str, settings: dict[str, Any]
) -> None:
    layer, inputs = make(kind, settings)
    expected = layer(*inputs)
    quant = swapped(layer, lab.scheme(weight=8, activation=8))
    lab.calibrate(quant, lambda m: m(*inputs))
    with quantizing(quant):
        found = quant(*inputs)
    gap = (found - expected).abs().max() / expected.abs().max()
    assert 0 < gap < 0.05
    assert quant.weight_quantizer.scale.numel() == 12


def test_arguments_by_name(lab: Any) -> None:
    layer, (x, offset) = make('v1', CASES[0][1])
    quant = swapped(layer, lab.scheme())
    with quantizing(quant):
        found = quant(x, offset=offset)
    torch.testing.assert_close(found, layer(x, offset), rtol=1e-4, atol=1e-4)


def test_arguments_by_name_in_any_order(lab: Any) -> None:
    host = hosts().get('torchvision')
    if host is None:
        pytest.skip('torchvision is not installed')
    layer = host(4, 6, 3, padding=1)
    x, mask = torch.randn(1, 4, 5, 5), torch.rand(1, 9, 5, 5)
    offset = torch.randn(1, 18, 5, 5)
    quant = swapped(layer, lab.scheme())
    given = {'mask': mask, 'offset': offset, 'input': x}
    expected = layer(x, offset, mask)
    assert torch.equal(quant(**given), expected)
    with quantizing(quant):
        found = quant(**given)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(quant(x, offset, None), layer(x, offset))


def test_inputs_in_another_memory_format(lab: Any) -> None:
    layer, (x, offset) = make('v1', CASES[0][1])
    quant = swapped(layer, lab.scheme())
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(quant(last, offset), layer(x, offset))


def test_without_offsets_it_reads_the_pixels_of_a_convolution() -> None:
    x = torch.arange(12.0).reshape(1, 1, 3, 4)
    values = sample(
        x,
        torch.zeros(1, 18, 3, 4),
        kernel_size=(3, 3),
        stride=(1, 1),
        padding=(1, 1),
        dilation=(1, 1),
    )
    expected = nn.functional.unfold(x, 3, padding=1).reshape(values.shape)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-5)


def test_offsets_of_a_finer_level_are_read_as_the_host_reads_them(
    lab: Any,
) -> None:
    layer, (x, _, _) = make('v2', {'padding': 1})
    offset, mask = torch.randn(2, 18, 18, 22), torch.rand(2, 9, 18, 22)
    quant = swapped(layer, lab.scheme())
    with quantizing(quant):
        found = quant(x, offset, mask)
    expected = layer(x, offset, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_what_is_read_and_where(lab: Any) -> None:
    layer, (x, offset) = make('v1', CASES[0][1])
    quant = swapped(layer, lab.scheme())
    x, offset = x.requires_grad_(), offset.requires_grad_()
    quant.weight.requires_grad_()
    with quantizing(quant):
        out: Tensor = quant(x, offset)
    out.square().sum().backward()
    for tensor in (x, offset, quant.weight):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0


def test_it_is_rounded_to_nearest_where_a_closed_form_is_asked_for() -> None:
    assert not QuantDeformConv2d.closed_form
