import copy
import io

import pytest
import torch
from torch import nn

from taskptq.core import (
    LSQQuantizer,
    QuantizerConfig,
    QuantSpec,
    enable,
    float_only,
    quantizing,
)
from taskptq.modules import (
    QuantConv2d,
    QuantConvTranspose2d,
    QuantLinear,
    Scheme,
    quant_modules,
)
from taskptq.modules.conv import by_input_channel
from taskptq.modules.multihead_attention import QuantMultiheadAttention

CASES = {
    'conv': (QuantConv2d, lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 5)),
    'grouped': (
        QuantConv2d,
        lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, bias=False),
        (2, 4, 7, 7),
    ),
    'reflect': (
        QuantConv2d,
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode='reflect'),
        (2, 4, 5, 5),
    ),
    'transposed': (
        QuantConvTranspose2d,
        lambda: nn.ConvTranspose2d(
            4, 6, 3, stride=2, padding=1, output_padding=1
        ),
        (2, 4, 5, 5),
    ),
    'transposed_grouped': (
        QuantConvTranspose2d,
        lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False),
        (2, 4, 5, 5),
    ),
    'linear': (QuantLinear, lambda: nn.Linear(4, 6), (2, 3, 4)),
    'linear_no_bias': (
        QuantLinear,
        lambda: nn.Linear(4, 6, bias=False),
        (2, 4),
    ),
}


@pytest.fixture(params=CASES)
def case(request, lab):
    """A float module, its counterpart and an input."""
    cls, build, shape = CASES[request.param]
    module = build()
    return (
        module,
        cls.from_float(module, scheme=lab.scheme()),
        torch.randn(shape),
    )


def channel_axis(module):
    transposed = isinstance(module, nn.ConvTranspose2d)
    return 1 if transposed and module.groups == 1 else 0


def float_layout(module, weight):
    """A weight as the float module has it."""
    if isinstance(module, nn.ConvTranspose2d) and module.groups > 1:
        return by_input_channel(weight, groups=module.groups)
    return weight


def test_off_means_float(case):
    module, quant, x = case
    assert torch.equal(quant(x), module(x))
    with float_only(quant):
        assert torch.equal(quant(x), module(x))


def test_parameters_are_taken_over_not_copied(case):
    module, quant, _ = case
    if quant.weight.shape == module.weight.shape:
        assert quant.weight is module.weight
    assert torch.equal(float_layout(module, quant.weight), module.weight)
    assert quant.weight.requires_grad == module.weight.requires_grad
    assert quant.bias is module.bias
    assert isinstance(quant, type(module))
    assert quant.training == module.training
    assert not any('quantizer' in name for name, _ in module.named_modules())


def test_every_point_fires_once(case, lab):
    _, quant, x = case
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        counts = lab.fired(quant, lambda m: m(x))
    assert counts == {'input_quantizer': 1, 'weight_quantizer': 1}


def test_output_is_that_of_quantized_operands(case, lab):
    module, quant, x = case
    lab.calibrate(quant, lambda m: m(x))
    reference = copy.deepcopy(module)
    reference.weight.data = float_layout(
        module, quant.weight_quantizer.dequantize(quant.codes())
    )
    x_hat = quant.input_quantizer.dequantize(quant.input_quantizer.quantize(x))
    with quantizing(quant):
        out = quant(x)
    torch.testing.assert_close(out, reference(x_hat), rtol=1e-5, atol=1e-5)
    assert not torch.equal(out, module(x))


def test_one_scale_per_output_channel(case, lab):
    _, quant, x = case
    lab.calibrate(quant, lambda m: m(x))
    axis = channel_axis(quant)
    count = quant.weight_quantizer.scale.numel()
    assert count == quant.weight.shape[axis] == 6
    assert quant.input_quantizer.scale.numel() == 1


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('name', CASES)
def test_freeze_puts_weights_on_the_grid(name, bits, lab):
    cls, build, shape = CASES[name]
    quant = cls.from_float(build(), scheme=lab.scheme(weight=bits))
    x = torch.randn(shape)
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        before = quant(x)
    quant.freeze()
    assert quant.weight_quantizer.frozen
    for channel in quant.weight.unbind(channel_axis(quant)):
        assert len(channel.unique()) <= 2**bits
    again = quant.weight_quantizer.dequantize(quant.codes())
    assert torch.equal(again, quant.weight)
    with quantizing(quant):
        assert torch.equal(quant(x), before)


def test_given_codes_come_back(case, lab):
    _, quant, x = case
    lab.calibrate(quant, lambda m: m(x))
    quantizer = quant.weight_quantizer
    codes = torch.randint(
        quantizer.quant_min,
        quantizer.quant_max + 1,
        quant.weight.shape,
        dtype=torch.int32,
    )
    quant.set_codes('weight', codes)
    assert torch.equal(quant.codes(), codes)
    with quantizing(quant):
        used = quant.quantized_weight()
    assert torch.equal(used, quantizer.dequantize(codes))
    quant.freeze()
    assert torch.equal(quant.codes(), codes)


def test_learned_rounding_is_used_and_kept(case, lab):
    _, quant, x = case
    lab.calibrate(quant, lambda m: m(x))
    rounding = quant.start_rounding()['weight']
    with quantizing(quant):
        soft = quant(x)
        soft.square().sum().backward()
    assert rounding.alpha.grad.abs().sum() > 0
    with pytest.raises(RuntimeError, match='finish_rounding'):
        quant.freeze()
    with torch.no_grad():
        rounding.alpha.copy_(torch.randn_like(rounding.alpha))
    codes = rounding.codes()
    quant.finish_rounding()
    assert torch.equal(quant.codes(), codes)


def test_gradients_flow(case, lab):
    _, quant, x = case
    lab.calibrate(quant, lambda m: m(x))
    x.requires_grad_()
    with quantizing(quant):
        quant(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert quant.weight.grad.abs().sum() > 0


def test_scales_learn(lab):
    scheme = lab.scheme(quantizer=LSQQuantizer)
    quant = QuantLinear.from_float(nn.Linear(4, 6), scheme=scheme)
    x = torch.randn(8, 4)
    lab.calibrate(quant, lambda m: m(x))
    scale = quant.input_quantizer.scale.requires_grad_()
    with quantizing(quant):
        quant(x).square().sum().backward()
    assert scale.grad.abs().sum() > 0


def test_copies_are_independent(case, lab):
    _, quant, x = case
    lab.calibrate(quant, lambda m: m(x))
    quant.set_codes('weight', quant.codes())
    twin = copy.deepcopy(quant)
    with quantizing(quant), quantizing(twin):
        before = quant(x)
        assert torch.equal(twin(x), before)
        with torch.no_grad():
            twin.weight.add_(1)
            twin.input_quantizer.scale.mul_(2)
            twin._rounded['weight'].zero_()
        assert torch.equal(quant(x), before)
        assert not torch.equal(twin(x), before)


def test_state_dict_round_trip(case, lab):
    module, quant, x = case
    lab.calibrate(quant, lambda m: m(x))
    quant.freeze()
    buffer = io.BytesIO()
    torch.save(quant.state_dict(), buffer)
    buffer.seek(0)
    fresh = type(quant).from_float(
        copy.deepcopy(module).apply(lambda m: nn.init.zeros_(m.weight)),
        scheme=lab.scheme(),
    )
    lab.load(fresh, torch.load(buffer, weights_only=True))
    with quantizing(quant):
        assert torch.equal(fresh(x), quant(x))


def test_a_point_without_recipe_stays_float(case):
    module, _, x = case
    quant = type(case[1]).from_float(module, scheme=Scheme())
    assert quant.weight_quantizer is None
    assert quant.input_quantizer is None
    enable(quant)
    assert torch.equal(quant(x), module(x))
    quant.calibrate_weights()
    quant.freeze()
    assert quant.start_rounding() == {}


def test_weights_need_integer_codes(lab):
    from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer

    scheme = lab.scheme(quantizer=PowerOfTwoQuantizer)
    quant = QuantLinear.from_float(nn.Linear(4, 6), scheme=scheme)
    with pytest.raises(TypeError, match='AffineQuantizer'):
        quant.calibrate_weights()


def test_quant_modules_in_definition_order(lab):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Linear(4, 2))
    model[0] = QuantConv2d.from_float(model[0], scheme=lab.scheme())
    model[2] = QuantLinear.from_float(model[2], scheme=lab.scheme())
    assert [name for name, _ in quant_modules(model)] == ['0', '2']


def test_a_corrected_bias_goes_with_the_quantized_weight(case):
    module, quant, x = case
    quant.calibrate_weights()
    if module.bias is None:
        with pytest.raises(ValueError, match='does not fit'):
            quant.set_bias('weight', torch.zeros(6))
        return
    with torch.no_grad():
        before = {mode: mode_output(quant, x, mode) for mode in MODES}
        own = quant.bias.clone()
        quant.set_bias('weight', quant.bias + 2)
        assert torch.equal(quant.bias, own)
        float_out, quant_out = (mode_output(quant, x, m) for m in MODES)
        assert torch.equal(float_out, before[float_only])
        torch.testing.assert_close(quant_out, before[quantizing] + 2)
        twin = copy.deepcopy(quant)
        twin.freeze()
        enable(twin)
        assert torch.equal(twin.bias, own + 2)
        assert torch.equal(twin(x), quant_out)
        assert not twin.corrected_biases
    with pytest.raises(ValueError, match='does not fit'):
        quant.set_bias('weight', torch.zeros(1))


MODES = (float_only, quantizing)


def mode_output(module, x, mode):
    with mode(module):
        return module(x)


def test_projections_share_one_corrected_bias():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    spec = QuantizerConfig(spec=QuantSpec(num_bits=4))
    quant = QuantMultiheadAttention.from_float(
        attention, scheme=Scheme(weight=spec)
    )
    quant.calibrate_weights()
    x = torch.randn(2, 3, 8)
    with torch.no_grad(), quantizing(quant):
        before = quant(x, x, x)[0]
        change = torch.zeros(24)
        change[16:] = 1.0  # of the value: it passes the softmax unchanged
        quant.set_bias('in_proj_weight', quant.in_proj_bias + change)
        after = quant(x, x, x)[0]
    expected = before + quant.out_proj.weight.detach().sum(dim=1)
    torch.testing.assert_close(after, expected)


def test_a_bias_trains_and_stays(case):
    _, quant, x = case
    quant.calibrate_weights()
    bias = quant.start_bias('weight')
    if quant.bias is None:
        assert bias is None
        return
    with quantizing(quant):
        quant(x).sum().backward()
    assert bool((bias.grad != 0).any())
    with torch.no_grad():
        bias += 1
    quant.finish_rounding()
    (kept,) = quant.corrected_biases.values()
    assert not kept.requires_grad
    torch.testing.assert_close(kept, quant.bias.detach() + 1)
    quant.forget_biases()
    assert not quant.corrected_biases


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('latent', [False, True])
def test_roundings_keep_the_dtype_of_the_model(dtype, latent, lab):
    linear = nn.Linear(4, 3).to(dtype)
    quant = QuantLinear.from_float(linear, scheme=lab.scheme(weight=4))
    quant.calibrate_weights()
    x = torch.ones(2, 4, dtype=dtype)
    with quantizing(quant):
        nearest = quant(x)
        quant.start_rounding(latent=latent)
        quant(x).sum().backward()
        quant.finish_rounding()
        assert quant(x).dtype == dtype
        quant.set_codes(
            'weight', quant.weight_quantizer.quantize(linear.weight)
        )
        torch.testing.assert_close(
            quant(x),
            nearest,
            rtol=1e-2 if dtype.itemsize < 4 else 1e-6,
            atol=1e-6,
        )
