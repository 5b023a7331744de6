"""Second moments of inputs: the energy of a layer's output."""

import pytest
import torch
from torch import nn

from taskptq.reconstruction.rounding.hessian import HessianAccumulator


def accumulated(layer, *inputs, **kwargs):
    accumulator = HessianAccumulator(layer, **kwargs)
    for x in inputs:
        accumulator.add(x)
    return accumulator.hessian()


CONVS = [
    {},
    {'padding': 1},
    {'stride': 2, 'padding': 2},
    {'dilation': 2, 'padding': 2},
    {'groups': 2, 'padding': 1, 'stride': (2, 1)},
    {'groups': 4},
    {'padding': 'same', 'dilation': 2},
    {'padding': 'valid'},
    {'padding': 1, 'padding_mode': 'reflect'},
    {'padding': (1, 2), 'padding_mode': 'circular'},
]


@pytest.mark.parametrize('kwargs', CONVS)
@pytest.mark.parametrize('max_elements', [1, 500, 1 << 24])
def test_conv_hessian_is_the_output_energy(kwargs, max_elements):
    layer = nn.Conv2d(4, 8, 3, bias=False, **kwargs).double().float()
    inputs = [torch.randn(3, 4, 9, 10), torch.randn(4, 9, 10)]
    hessian = accumulated(layer, *inputs, max_elements=max_elements)
    check_energy(layer, inputs, hessian, layer.weight.flatten(1))


TRANSPOSED = [
    {},
    {'stride': 2},
    {'stride': 2, 'padding': 1, 'output_padding': 1},
    {'padding': 2, 'dilation': 2},
    {'stride': (2, 3), 'padding': (0, 1), 'groups': 2},
    {'groups': 4, 'stride': 2},
]


@pytest.mark.parametrize('kwargs', TRANSPOSED)
@pytest.mark.parametrize('max_elements', [1, 1 << 24])
def test_transposed_conv_hessian_is_the_output_energy(kwargs, max_elements):
    layer = nn.ConvTranspose2d(4, 8, 3, bias=False, **kwargs)
    inputs = [torch.randn(3, 4, 5, 6), torch.randn(4, 5, 6)]
    hessian = accumulated(layer, *inputs, max_elements=max_elements)
    weight = layer.weight.unflatten(0, (layer.groups, -1))
    rows = weight.transpose(1, 2).flatten(2).flatten(0, 1)
    check_energy(layer, inputs, hessian, rows)


def check_energy(layer, inputs, hessian, rows):
    """w H w^T must be twice the mean square of the layer's output."""
    with torch.no_grad():
        outputs = [layer(x) for x in inputs]
        outputs = torch.cat(
            [out.transpose(-3, 0).flatten(1) for out in outputs], dim=1
        ).double()
        rows = rows.double().unflatten(0, (layer.groups, -1))
        energy = torch.einsum('gri,gij,grj->gr', rows, hessian, rows)
    expected = 2 * outputs.square().mean(dim=1)
    torch.testing.assert_close(
        energy.flatten(), expected, rtol=1e-5, atol=1e-8
    )


def test_linear_hessian_flattens_leading_dimensions():
    x = torch.randn(2, 7, 5)
    hessian = accumulated(nn.Linear(5, 3), x, max_elements=8)
    flat = x.reshape(-1, 5).double()
    torch.testing.assert_close(
        hessian[0], 2 / 14 * flat.T @ flat, rtol=1e-5, atol=1e-6
    )


def test_float32_sums_and_batches_agree_with_one_float64_pass():
    x = torch.randn(64, 5)
    whole = accumulated(None, x)
    parts = accumulated(None, *x.split(10), dtype=torch.float32)
    assert parts.dtype == torch.float32
    torch.testing.assert_close(parts.double(), whole, rtol=1e-4, atol=1e-5)


def test_accumulator_refusals():
    with pytest.raises(NotImplementedError, match='not Conv1d'):
        HessianAccumulator(nn.Conv1d(2, 2, 1))
    with pytest.raises(RuntimeError, match='never ran'):
        HessianAccumulator(nn.Linear(2, 2)).hessian()
