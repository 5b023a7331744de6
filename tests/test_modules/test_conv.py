import pytest
import torch
from torch import nn

from taskptq.core import quantizing
from taskptq.modules import (
    QuantConv2d,
    QuantConvTranspose2d,
    counterpart_class,
)
from taskptq.modules.conv import by_input_channel, by_output_channel


@pytest.mark.parametrize('output_size', [None, (10, 10), (9, 9)])
def test_output_size_is_respected(output_size, lab):
    module = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1)
    quant = QuantConvTranspose2d.from_float(module, scheme=lab.scheme())
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(quant(x, output_size), module(x, output_size))


def test_zero_padding_is_exact(lab):
    # What the padding adds must be the grid's zero: a constant input far
    # from 0 would otherwise show a rim.
    module = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(module.weight)
    quant = QuantConv2d.from_float(module, scheme=lab.scheme(activation=2))
    x = torch.full((1, 1, 5, 5), 3.0)
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        out = quant(x)
    torch.testing.assert_close(out, module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('impl', 'name'),
    [
        (QuantConv2d, 'Conv2d'),
        (QuantConvTranspose2d, 'ConvTranspose2d'),
    ],
)
def test_wrappers_of_mmcv(impl, name, lab):
    wrappers = pytest.importorskip('mmcv.cnn.bricks.wrappers')
    module = getattr(wrappers, name)(4, 6, 3, padding=1)
    cls = counterpart_class(impl, type(module))
    quant = cls.from_float(module, scheme=lab.scheme())
    assert isinstance(quant, type(module))
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(quant(x), module(x))
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        counts = lab.fired(quant, lambda m: m(x))
    assert counts == {'input_quantizer': 1, 'weight_quantizer': 1}


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_rearranging_a_transposed_weight_is_undone(groups):
    weight = torch.randn(8, 12 // groups, 3, 2)
    turned = by_output_channel(weight, groups=groups)
    assert turned.shape == (12, 8 // groups, 3, 2)
    assert torch.equal(by_input_channel(turned, groups=groups), weight)


@pytest.mark.parametrize('groups', [2, 8])
def test_each_output_channel_of_a_grouped_deconvolution_has_its_scale(
    groups, lab
):
    module = nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=groups)
    # Channels of very different size: one scale for all leaves most at zero.
    module.weight.data *= torch.logspace(-3, 0, 8).view(8, 1, 1, 1)
    quant = QuantConvTranspose2d.from_float(
        module, scheme=lab.scheme(weight=4)
    )
    quant.calibrate_weights()
    assert quant.weight_quantizer.scale.numel() == 8
    for group in quant.codes().split(8 // groups):
        assert group.unique().numel() > 8
    x = torch.randn(2, 8, 5, 5)
    with quantizing(quant, activations=False):
        out = quant(x)
    for channel in range(8):
        one = module(x)[:, channel]
        assert (out[:, channel] - one).norm() < 0.2 * one.norm()
