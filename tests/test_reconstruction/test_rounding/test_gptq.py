import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.core import AffineQuantizer, QuantizerConfig, QuantSpec
from taskptq.modules.base import Scheme
from taskptq.modules.conv import QuantConv2d, QuantConvTranspose2d
from taskptq.modules.linear import QuantLinear
from taskptq.reconstruction.rounding.gptq import gptq_codes, gptq_layer
from taskptq.reconstruction.rounding.hessian import HessianAccumulator


def scheme(num_bits=3, *, per_channel=True, symmetric=True):
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric)
    return Scheme(weight=QuantizerConfig(spec=spec, per_channel=per_channel))


def quantizer_for(weight, *, num_bits=3, per_channel=True, symmetric=True):
    spec = QuantSpec(
        num_bits=num_bits,
        symmetric=symmetric,
        ch_axis=0 if per_channel else None,
    )
    quantizer = AffineQuantizer(spec)
    quantizer.set_bounds(signed=True)
    rows = weight if per_channel else weight.reshape(1, -1)
    quantizer.set_range(rows.amin(dim=1), rows.amax(dim=1))
    return quantizer


def correlated(count, features, *, rank=6):
    mix = torch.randn(rank, features)
    return torch.randn(count, rank) @ mix + 0.1 * torch.randn(count, features)


def accumulated(layer, *inputs, **kwargs):
    accumulator = HessianAccumulator(layer, **kwargs)
    for x in inputs:
        accumulator.add(x)
    return accumulator.hessian()


def output_error(weight, codes, quantizer, x):
    return ((quantizer.dequantize(codes) - weight) @ x.T).square().mean()


@pytest.mark.parametrize('num_bits', [2, 3, 4, 8])
@pytest.mark.parametrize('per_channel', [True, False])
@pytest.mark.parametrize('symmetric', [True, False])
def test_far_below_round_to_nearest(num_bits, per_channel, symmetric):
    x = correlated(600, 40)
    weight = torch.randn(24, 40)
    quantizer = quantizer_for(
        weight,
        num_bits=num_bits,
        per_channel=per_channel,
        symmetric=symmetric,
    )
    hessian = accumulated(None, x)[0]
    nearest = quantizer.quantize(weight)
    codes = gptq_codes(weight, hessian, quantizer)
    assert codes.shape == weight.shape
    assert codes.dtype == torch.int32
    assert codes.min() >= quantizer.quant_min
    assert codes.max() <= quantizer.quant_max
    errors = [output_error(weight, c, quantizer, x) for c in (codes, nearest)]
    assert errors[0] < 0.35 * errors[1]


def test_unseen_inputs_of_the_same_kind_gain_too():
    x = correlated(1200, 40)
    weight = torch.randn(24, 40)
    quantizer = quantizer_for(weight)
    codes = gptq_codes(weight, accumulated(None, x[:600])[0], quantizer)
    nearest = quantizer.quantize(weight)
    assert output_error(weight, codes, quantizer, x[600:]) < (
        0.5 * output_error(weight, nearest, quantizer, x[600:])
    )


def test_weights_on_the_grid_stay():
    weight = torch.randn(8, 20)
    quantizer = quantizer_for(weight)
    codes = quantizer.quantize(weight)
    on_grid = quantizer.dequantize(codes)
    hessian = accumulated(None, correlated(100, 20))[0]
    assert torch.equal(gptq_codes(on_grid, hessian, quantizer), codes)


def test_uncorrelated_inputs_give_round_to_nearest():
    weight = torch.randn(8, 20)
    quantizer = quantizer_for(weight)
    codes = gptq_codes(weight, torch.eye(20), quantizer)
    assert torch.equal(codes, quantizer.quantize(weight))


@pytest.mark.parametrize('act_order', [True, False])
def test_block_size_changes_nothing(act_order):
    weight = torch.randn(8, 50)
    quantizer = quantizer_for(weight)
    hessian = accumulated(None, correlated(300, 50))[0]
    found = [
        gptq_codes(
            weight, hessian, quantizer, block_size=size, act_order=act_order
        )
        for size in (1, 7, 50, 128)
    ]
    for codes in found[1:]:
        assert torch.equal(codes, found[0])


def test_matches_the_column_by_column_formula():
    weight = torch.randn(3, 6, dtype=torch.float64)
    quantizer = quantizer_for(weight.float())
    hessian = accumulated(None, correlated(50, 6))[0]
    codes = gptq_codes(
        weight, hessian, quantizer, damping=0.0, act_order=False
    )
    # Optimal brain quantization with a fixed order: after each rounding the
    # rest moves by -error / [H^-1]_qq * [H^-1]_q, over the columns left.
    scale = quantizer.scale.double()[:, None]
    work = weight.clone()
    for i in range(6):
        inverse = torch.linalg.inv(hessian[i:, i:])
        rounded = (work[:, i : i + 1] / scale).round().clamp(-4, 3)
        assert torch.equal(rounded[:, 0].int(), codes[:, i])
        error = work[:, i : i + 1] - rounded * scale
        work[:, i:] -= error / inverse[0, 0] * inverse[0]


def test_dead_inputs_are_rounded_to_nearest():
    x = correlated(200, 12)
    x[:, [2, 7]] = 0
    weight = torch.randn(5, 12)
    quantizer = quantizer_for(weight)
    codes = gptq_codes(weight, accumulated(None, x)[0], quantizer)
    nearest = quantizer.quantize(weight)
    assert torch.equal(codes[:, [2, 7]], nearest[:, [2, 7]])


def test_layer_whose_inputs_were_all_zero():
    weight = torch.randn(5, 12)
    quantizer = quantizer_for(weight)
    codes = gptq_codes(weight, torch.zeros(12, 12), quantizer)
    assert torch.equal(codes, quantizer.quantize(weight))


def test_rank_deficient_hessian_is_damped():
    x = correlated(3, 30)
    weight = torch.randn(5, 30)
    quantizer = quantizer_for(weight)
    hessian = accumulated(None, x)[0]
    nearest = quantizer.quantize(weight)
    for damping in (0.0, 0.01):
        codes = gptq_codes(weight, hessian, quantizer, damping=damping)
        assert output_error(weight, codes, quantizer, x) < output_error(
            weight, nearest, quantizer, x
        )


def test_bad_arguments_are_refused():
    weight = torch.randn(5, 4)
    quantizer = quantizer_for(weight)
    with pytest.raises(ValueError, match='cannot be factorised'):
        gptq_codes(
            weight, torch.diag(torch.tensor([1.0, 1, 1, -90])), quantizer
        )
    with pytest.raises(ValueError, match='NaN or infinity'):
        gptq_codes(weight, torch.full((4, 4), torch.nan), quantizer)
    with pytest.raises(ValueError, match='shape'):
        gptq_codes(weight, torch.eye(3), quantizer)
    with pytest.raises(ValueError, match='block_size=0'):
        gptq_codes(weight, torch.eye(4), quantizer, block_size=0)


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
def test_conv_equals_the_linear_on_unfolded_inputs(kwargs):
    groups = kwargs.get('groups', 1)
    layer = nn.Conv2d(4, 8, 3, bias=False, **kwargs)
    module = QuantConv2d.from_float(layer, scheme=scheme())
    module.calibrate_weights()
    x = torch.randn(6, 4, 9, 10).cumsum(dim=3)
    hessian = accumulated(module, x)
    codes = gptq_layer(module, 'weight', hessian)
    for group in range(groups):
        rows = slice(group * 8 // groups, (group + 1) * 8 // groups)
        weight = layer.weight.detach()[rows].flatten(1)
        linear = QuantLinear.from_float(
            nn.Linear(weight.shape[1], weight.shape[0]), scheme=scheme()
        )
        linear.weight.data = weight
        linear.calibrate_weights()
        single = gptq_layer(linear, 'weight', hessian[group])
        assert torch.equal(codes[rows].flatten(1), single)


LAYERS = [
    (QuantConv2d, nn.Conv2d, {'padding': 1}),
    (QuantConv2d, nn.Conv2d, {'padding': 1, 'groups': 2}),
    (QuantConvTranspose2d, nn.ConvTranspose2d, {'stride': 2, 'padding': 1}),
    (QuantConvTranspose2d, nn.ConvTranspose2d, {'stride': 2, 'groups': 2}),
]


@pytest.mark.parametrize(('quant', 'float_class', 'kwargs'), LAYERS)
@pytest.mark.parametrize('per_channel', [True, False])
def test_layer_output_error_falls(quant, float_class, kwargs, per_channel):
    layer = float_class(8, 12, 3, **kwargs)
    x = F.avg_pool2d(torch.randn(8, 2, 16, 16), 5, stride=1)
    x = torch.einsum('bchw,dc->bdhw', x, torch.randn(8, 2))
    with torch.no_grad():
        expected = layer(x)
        module = quant.from_float(
            layer, scheme=scheme(per_channel=per_channel)
        )
        module.calibrate_weights()
        module.weight_quantizer.enabled = True
        nearest = (module(x) - expected).square().mean()
        codes = gptq_layer(module, 'weight', accumulated(module, x))
        assert codes.shape == module.weight.shape
        module.set_codes('weight', codes)
        assert torch.equal(module.codes(), codes)
        assert (module(x) - expected).square().mean() < 0.5 * nearest


def test_rows_of_a_fused_projection_take_their_own_hessians():
    module = QuantLinear.from_float(nn.Linear(10, 12), scheme=scheme())
    module.calibrate_weights()
    query, value = correlated(90, 10), correlated(90, 10)
    slices = [
        (slice(8, None), accumulated(None, value)),
        (slice(0, 8), accumulated(None, query)[0]),
    ]
    codes = gptq_layer(module, 'weight', slices)
    both = [
        gptq_layer(module, 'weight', accumulated(None, x))
        for x in (query, value)
    ]
    assert torch.equal(codes[:8], both[0][:8])
    assert torch.equal(codes[8:], both[1][8:])
    assert not torch.equal(both[0], both[1])
    with pytest.raises(ValueError, match='do not cover'):
        gptq_layer(module, 'weight', slices[:1])


def test_uncalibrated_or_float_weight_is_refused():
    module = QuantLinear.from_float(nn.Linear(3, 2), scheme=scheme())
    with pytest.raises(ValueError, match='no calibrated quantizer'):
        gptq_layer(module, 'weight', torch.eye(3))
    module = QuantLinear.from_float(nn.Linear(3, 2), scheme=Scheme())
    with pytest.raises(ValueError, match='no calibrated quantizer'):
        gptq_layer(module, 'weight', torch.eye(3))
