import pytest
import torch

from taskptq.analysis.sensitivity.grids import AffineGrid
from taskptq.analysis.sensitivity.products import error_products
from taskptq.core import AffineQuantizer, QuantSpec


def grid(scale, zero_point, *, ch_axis=None, bits=4):
    return AffineGrid(
        scale=torch.tensor(scale),
        zero_point=torch.tensor(zero_point, dtype=torch.int32),
        quant_min=0,
        quant_max=2**bits - 1,
        ch_axis=ch_axis,
    )


def plain(value, gradient, rounded, rows):
    error = (rounded(value) - value).double().reshape(rows, -1)
    return (gradient.double().reshape(rows, -1) * error).sum(dim=1)


@pytest.mark.parametrize('bits', [4, 8, 16])
@pytest.mark.parametrize('rows', [1, 2, 4])
@pytest.mark.parametrize('shape', [(4, 3, 40, 50), (4, 3, 2, 2), (4, 60)])
@pytest.mark.parametrize('ch_axis', [None, 1])
def test_products_are_those_of_the_errors(bits, rows, shape, ch_axis):
    torch.manual_seed(0)
    scales = torch.linspace(0.5, 2, shape[1]) * 4 / 2**bits
    if ch_axis is None:
        rounded = grid([2.0 / 2**bits], [2 ** (bits - 1)], bits=bits)
    else:
        zeros = [2 ** (bits - 1)] * shape[1]
        rounded = grid(scales.tolist(), zeros, ch_axis=1, bits=bits)
    value, gradient = torch.randn(shape), torch.randn(shape)
    if len(shape) == 4:
        value = value.contiguous(memory_format=torch.channels_last)
    found = error_products(value, gradient, rounded=rounded, rows=rows)
    truth = plain(value, gradient, rounded, rows)
    assert found.dtype == torch.float64
    assert torch.allclose(found, truth, rtol=2e-3, atol=1e-3 * 2 / 2**bits)


def test_parts_of_a_large_tensor_add_up(monkeypatch):
    monkeypatch.setattr('taskptq.analysis.sensitivity.products.PART', 7)
    value, gradient = torch.randn(2, 25), torch.randn(2, 25)
    rounded = grid([0.3], [8])
    found = error_products(value, gradient, rounded=rounded, rows=2)
    assert torch.allclose(found, plain(value, gradient, rounded, 2))


def test_a_quantizers_own_grid():
    quantizer = AffineQuantizer(QuantSpec(num_bits=4))
    quantizer.set_bounds(signed=False)
    quantizer.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    value, gradient = torch.randn(2, 25), torch.randn(2, 25)
    rounded = quantizer.fake_quantize
    found = error_products(value, gradient, rounded=rounded, rows=2)
    assert torch.allclose(found, plain(value, gradient, rounded, 2))


def test_any_other_function():
    value, gradient = torch.randn(2, 25), torch.randn(2, 25)
    found = error_products(value, gradient, rounded=torch.sign, rows=2)
    assert torch.allclose(found, plain(value, gradient, torch.sign, 2))
