"""Weights and biases fitted to the float model's outputs."""

import dataclasses

import pytest
import torch
from torch import nn

from taskptq.core import QuantizerConfig, QuantSpec
from taskptq.modules import QuantConv2d, QuantConvTranspose2d, QuantLinear
from taskptq.modules.base import Scheme
from taskptq.reconstruction import ReconstructionConfig
from taskptq.reconstruction.rounding.layer_fit import (
    correct_bias,
    fit_layer,
    matched_weight,
)
from taskptq.reconstruction.rounding.moments import PairedMoments

LAYERS = {
    'linear': (QuantLinear, lambda: nn.Linear(6, 5), (200, 6)),
    'conv': (QuantConv2d, lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 4, 9, 9)),
    'depthwise': (
        QuantConv2d,
        lambda: nn.Conv2d(4, 4, 3, groups=4),
        (8, 4, 9, 9),
    ),
    'transposed': (
        QuantConvTranspose2d,
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2),
        (4, 4, 9, 9),
    ),
}


def scheme(**kwargs):
    spec = QuantSpec(num_bits=3)
    return Scheme(weight=QuantizerConfig(spec=spec, **kwargs))


@pytest.fixture(params=LAYERS)
def case(request):
    """A calibrated layer, its inputs in both models, and their moments."""
    cls, build, shape = LAYERS[request.param]
    layer = cls.from_float(build(), scheme=scheme(per_channel=True))
    layer.calibrate_weights()
    exact = torch.randn(shape).cumsum(dim=-1) + 1
    quant = 0.8 * exact + 0.3 * torch.randn(shape) + 0.2
    sums = PairedMoments(layer)
    sums.add(quant, exact)
    return layer, quant, exact, sums


@pytest.fixture
def fit():
    def run(layer, sums, **settings):
        config = ReconstructionConfig(rounding='gptq', **settings)
        moments = sums.moments(centred=config.bias_correction)
        fit_layer(layer, 'weight', [(slice(0, None), moments)], config)

    return run


@torch.no_grad()
def outputs(layer, quant, exact):
    """Outputs of the quantized layer and of the float one."""
    layer.weight_quantizer.enabled = False
    target = layer(exact)
    layer.weight_quantizer.enabled = True
    return layer(quant), target


def test_matching_lowers_the_error_to_the_float_model(case, fit):
    layer, quant, exact, sums = case
    errors = {}
    for match in (False, True):
        fit(layer, sums, match_float=match)
        out, target = outputs(layer, quant, exact)
        errors[match] = float((out - target).square().mean())
    assert errors[True] < errors[False]


def test_every_step_helps_on_its_own_measure(case, fit):
    layer, quant, exact, sums = case
    errors = []
    for settings in ({}, {'gptq_sweeps': 9}, {'output_ranges': True}):
        fit(layer, sums, match_float=True, **settings)
        out, target = outputs(layer, quant, exact)
        errors.append(float((out - target).square().mean()))
    assert errors[1] <= errors[0] * (1 + 1e-3)
    assert errors[2] <= errors[0] * (1 + 1e-3)
    assert min(errors[1:]) < errors[0]


def test_corrected_bias_gives_the_float_mean(case, fit):
    layer, quant, exact, sums = case
    before = layer.bias.clone()
    fit(layer, sums, match_float=True, bias_correction=True)
    assert torch.equal(layer.bias, before)
    assert list(layer.corrected_biases) == ['weight']
    out, target = outputs(layer, quant, exact)
    means = [x.transpose(0, 1 if x.dim() > 2 else -1) for x in (out, target)]
    means = [x.flatten(1).mean(dim=1) for x in means]
    torch.testing.assert_close(*means, rtol=1e-3, atol=1e-3)
    layer.freeze()
    assert not torch.equal(layer.bias, before)
    assert not layer.corrected_biases


def test_perfect_inputs_leave_the_weight(case):
    layer, _, exact, _ = case
    sums = PairedMoments(layer)
    sums.add(exact, exact)
    moments = sums.moments(centred=False)
    damped = moments.hessian + torch.eye(moments.hessian.shape[1])
    groups = len(moments.hessian)
    weight = torch.randn(groups, 3, moments.hessian.shape[1]).double()
    matched = matched_weight(weight, moments, damped)
    torch.testing.assert_close(matched, weight)


def test_linear_damage_is_undone(fit):
    layer = QuantLinear.from_float(nn.Linear(6, 5), scheme=Scheme())
    mixing, exact = torch.eye(6) + 0.3 * torch.randn(6, 6), torch.randn(99, 6)
    sums = PairedMoments(layer)
    sums.add(exact @ mixing, exact)
    moments = sums.moments(centred=False)
    damped = moments.hessian + 1e-6 * torch.eye(6)
    matched = matched_weight(layer.weight[None].detach(), moments, damped)
    torch.testing.assert_close(
        exact @ mixing @ matched[0].float().T,
        exact @ layer.weight.detach().T,
        rtol=1e-3,
        atol=1e-3,
    )


def test_a_layer_without_bias_stays_as_it_is():
    layer = QuantLinear.from_float(
        nn.Linear(6, 5, bias=False), scheme=scheme(per_channel=True)
    )
    layer.calibrate_weights()
    sums = PairedMoments(layer)
    sums.add(torch.randn(9, 6), torch.randn(9, 6))
    rows = [(slice(0, None), sums.moments(centred=False))]
    correct_bias(layer, 'weight', rows)
    assert not layer.corrected_biases


def test_one_range_for_the_whole_weight(fit):
    layer = QuantLinear.from_float(
        nn.Linear(6, 5), scheme=scheme(per_channel=False)
    )
    layer.calibrate_weights()
    x, before = torch.randn(99, 6), layer.weight_quantizer.scale.clone()
    sums = PairedMoments(layer)
    sums.add(x, x)
    fit(layer, sums, output_ranges=True)
    assert layer.weight_quantizer.scale.shape == before.shape
    assert layer.weight_quantizer.scale < before


def test_settings_that_nothing_uses_are_refused():
    for name, value in (('match_float', True), ('gptq_sweeps', 2)):
        with pytest.raises(ValueError, match=f'reconstruction.{name}'):
            ReconstructionConfig(**{name: value})
        config = ReconstructionConfig(start='gptq', **{name: value})
        again = dataclasses.replace(config, network_steps=5).of_network()
        assert not getattr(again, name)
    with pytest.raises(ValueError, match=r'reconstruction\.start'):
        ReconstructionConfig(rounding='nearest', start='gptq')
    with pytest.raises(ValueError, match=r'reconstruction\.output_ranges'):
        ReconstructionConfig(scope='network', output_ranges=True)
