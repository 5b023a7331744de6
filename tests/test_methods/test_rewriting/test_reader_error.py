"""The error of quantized readers is that of the layers themselves."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.core import (
    MinMaxObserver,
    MSEObserver,
    QuantizerConfig,
    QuantSpec,
)
from taskptq.methods.rewriting.reader_error import (
    DEFAULT,
    ReaderError,
    fake,
    layer_schemes,
)
from taskptq.methods.rewriting.readers import Reader, collect_inputs
from taskptq.modules import QuantLinear
from taskptq.modules.base import Scheme
from taskptq.modules.conv import QuantConv2d
from taskptq.prepare import QConfig

from ..conftest import stats_of  # isort: skip


def scheme(bits=4, **activation):
    weight = QuantSpec(num_bits=bits, symmetric=True)
    return Scheme(
        weight=QuantizerConfig(spec=weight, per_channel=True),
        activation=QuantizerConfig(
            spec=QuantSpec(num_bits=bits), **activation
        ),
    )


def error_of(module, x, chosen=None, gains=None):
    reader = Reader(name='0', module=module)
    samples = collect_inputs(nn.Sequential(module), [reader], stats_of((x,)))
    return ReaderError(
        reader=reader,
        sample=samples['0'],
        scheme=chosen or scheme(),
        gains=gains,
    )


def quantized(cls, module, x, chosen):
    quant = cls.from_float(module, scheme=chosen)
    quant.calibrate_weights()
    quant.input_quantizer.observer.observe(x)
    quant.input_quantizer.calibrate()
    for one in (quant.weight_quantizer, quant.input_quantizer):
        one.enabled = True
    return quant(x)


@pytest.mark.parametrize(
    ('cls', 'module', 'shape'),
    [
        (QuantLinear, nn.Linear(6, 5, bias=False), (9, 6)),
        (QuantConv2d, nn.Conv2d(6, 5, 3, bias=False), (1, 6, 7, 6)),
        (QuantConv2d, nn.Conv2d(6, 6, 3, groups=3, bias=False), (1, 6, 7, 6)),
    ],
)
def test_equals_the_quantized_layer(cls, module, shape):
    x = torch.randn(shape)
    found = error_of(module, x).error(torch.ones(6))
    with torch.no_grad():
        y = module(x)
        change = quantized(cls, module, x, scheme()) - y
    expected = float(change.square().sum() / y.square().sum())
    assert found == pytest.approx(expected, rel=1e-4)


def test_scales_and_shift_are_exact_without_quantization():
    module = nn.Conv2d(4, 4, 2, groups=2)
    error = error_of(module, torch.randn(1, 4, 6, 6), Scheme())
    scales, shift = torch.tensor([0.5, 2, 3, 9]), torch.randn(4)
    assert error.error(scales, shift) < 1e-12


def test_the_right_scale_helps():
    x = torch.randn(200, 4) * torch.tensor([1.0, 1, 1, 30])
    module = nn.Linear(4, 4)
    with torch.no_grad():
        module.weight[:, 3] /= 30
    error = error_of(module, x)
    plain = error.error(torch.ones(4))
    assert error.error(torch.tensor([1.0, 1, 1, 30])) < plain / 10
    assert error.error(torch.tensor([30.0, 1, 1, 1])) > plain / 2


def test_gains_weigh_the_outputs():
    module = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]]))
    # One input on the grid, three that are not.
    x = torch.tensor([[15.0, 0.4, 0.4, 0.4], [0, 0.4, 0.4, 0.4]])
    first, second = (
        error_of(module, x, gains=torch.tensor(gains)).error(torch.ones(4))
        for gains in ([1.0, 0.0], [0.0, 1.0])
    )
    assert first < 1e-3 < second


def test_depthwise_inputs_may_have_own_scales():
    conv = nn.Conv2d(4, 4, 1, groups=4)
    x = torch.randn(1, 4, 8, 8) * torch.tensor([1.0, 4, 16, 64])[:, None, None]
    common = error_of(conv, x)
    own = error_of(conv, x, scheme(per_channel=True))
    assert own.per_channel_input
    assert not common.per_channel_input
    assert own.error(torch.ones(4)) == pytest.approx(
        own.error(torch.tensor([1.0, 4, 16, 64])), rel=1e-6
    )


def test_rare_peaks_widen_ranges_that_are_not_searched():
    config = QuantizerConfig(spec=QuantSpec(num_bits=4))
    x, ends = torch.rand(50, 1), torch.tensor([[0.0], [15.0]])
    assert float(fake(config, x, ends=ends).max()) == 1.0
    assert fake(config, x, ends=ends).unique().numel() == 2
    searched = replace(config, observer=MSEObserver)
    assert fake(searched, x, ends=ends).unique().numel() > 10
    assert config.observer is MinMaxObserver


def test_no_recipe_leaves_a_tensor():
    x = torch.randn(3)
    assert fake(None, x) is x


def test_bits_come_from_the_recipe():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
    )
    qconfig = QConfig.from_dict(
        {'weight': {'num_bits': 4}, 'keep_float': ['2']}
    )
    found = layer_schemes(model, SimpleNamespace(qconfig=qconfig))
    assert found('0').weight.spec.num_bits == 8  # the first layer
    assert found('1').weight.spec.num_bits == 4
    assert found('2') is None
    assert layer_schemes(model, stats_of())('1') is DEFAULT


def test_split_channels_are_those_of_a_wider_layer():
    counts = torch.tensor([1, 3, 1, 2])
    index = torch.repeat_interleave(torch.arange(4), counts)
    x = torch.randn(64, 4) * torch.tensor([1.0, 3, 1, 2])
    layer, wider = nn.Linear(4, 5), nn.Linear(7, 5)
    with torch.no_grad():
        wider.weight.copy_(layer.weight[:, index])
    found = error_of(layer, x).split_error(counts)
    parts = (x / counts)[:, index]
    assert found == pytest.approx(
        error_of(wider, parts).error(torch.ones(7)), rel=1e-4
    )
    assert found < error_of(layer, x).error(torch.ones(4))
