import copy

import pytest
import torch

from taskptq.core import (
    AffineQuantizer,
    LSQQuantizer,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    Quantizer,
    QuantSpec,
)
from taskptq.core.drop import random_drop
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer

CLASSES = [AffineQuantizer, LSQQuantizer]


def calibrated(cls, x, *, spec=None, **kwargs):
    spec = spec or QuantSpec(num_bits=4)
    quantizer = cls(spec, observer=MinMaxObserver(spec), **kwargs)
    quantizer.observer.observe(x)
    assert quantizer.calibrate()
    quantizer.enabled = True
    return quantizer


@pytest.mark.parametrize('cls', CLASSES)
@pytest.mark.parametrize('num_bits', range(2, 9))
@pytest.mark.parametrize('symmetric', [True, False])
@pytest.mark.parametrize('ch_axis', [None, 0, 1])
@pytest.mark.parametrize('positive', [True, False])
def test_table(cls, num_bits, symmetric, ch_axis, positive):
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, ch_axis=ch_axis)
    x = torch.randn(3, 4, 6)
    x = x.abs() if positive else x
    quantizer = calibrated(cls, x, spec=spec)
    assert quantizer.quant_min == (0 if positive else -(2 ** (num_bits - 1)))
    assert quantizer.scale.numel() == {None: 1, 0: 3, 1: 4}[ch_axis]
    out = quantizer(x)
    codes = quantizer.quantize(out)
    assert codes.unique().numel() <= 2**num_bits
    assert torch.equal(quantizer.dequantize(codes), out)
    assert torch.equal(quantizer(out), out)
    shape = [1, 1, 1]
    if ch_axis is not None:
        shape[ch_axis] = -1
    half = quantizer.scale.reshape(shape) / 2
    assert ((out - x).abs() <= half * 1.001).all()


@pytest.mark.parametrize('signed', [True, False])
def test_signed_in_the_spec_wins(signed):
    spec = QuantSpec(num_bits=4, signed=signed)
    quantizer = calibrated(AffineQuantizer, torch.randn(20), spec=spec)
    assert quantizer.quant_min == (-8 if signed else 0)
    x = torch.tensor([-1.0, 0.0, 1.0])
    assert ((quantizer(x) - x).abs() < quantizer.scale).all()


@pytest.mark.parametrize('cls', [*CLASSES, PowerOfTwoQuantizer])
def test_uncalibrated_disabled_and_frozen_pass_through(cls):
    x = torch.rand(20)
    spec = QuantSpec(num_bits=2)
    quantizer = cls(spec)
    quantizer.enabled = True
    assert quantizer(x) is x
    assert not quantizer.calibrate()
    assert quantizer.learnable() == []
    quantizer = calibrated(cls, x, spec=spec)
    assert not torch.equal(quantizer(x), x)
    quantizer.frozen = True
    assert quantizer(x) is x
    quantizer.frozen, quantizer.enabled = False, False
    assert quantizer(x) is x


def test_observer_that_saw_nothing_leaves_it_uncalibrated():
    spec = QuantSpec()
    quantizer = AffineQuantizer(spec, observer=MinMaxObserver(spec))
    assert not quantizer.calibrate()
    assert not quantizer.calibrated


@pytest.mark.parametrize(
    ('cls', 'kwargs'),
    [
        (AffineQuantizer, {}),
        (LSQQuantizer, {}),
        (LSQQuantizer, {'learn_zero_point': True}),
        (PowerOfTwoQuantizer, {'tau': 4}),
    ],
)
@pytest.mark.parametrize('channelwise', [False, True])
def test_state_dict_round_trip_is_bit_exact(cls, kwargs, channelwise):
    logarithmic = cls is PowerOfTwoQuantizer
    # The logarithmic grid is always per tensor, and never negative.
    ch_axis = 0 if channelwise and not logarithmic else None
    spec = QuantSpec(num_bits=3, ch_axis=ch_axis)
    x = torch.rand(4, 9) - (0 if logarithmic else 0.5)
    quantizer = calibrated(cls, x, spec=spec, **kwargs)
    other = cls(spec, **({} if logarithmic else kwargs))
    other.load_state_dict(quantizer.state_dict())
    other.enabled = True
    assert torch.equal(other(x), quantizer(x))
    assert (other.quant_min, other.quant_max) == (
        quantizer.quant_min,
        quantizer.quant_max,
    )
    twin = copy.deepcopy(quantizer)
    assert torch.equal(twin(x), quantizer(x))


@pytest.mark.parametrize('learn_zero_point', [True, False])
@pytest.mark.parametrize('ch_axis', [None, 0])
@pytest.mark.parametrize('positive', [True, False])
def test_learning_changes_no_output_value(learn_zero_point, ch_axis, positive):
    spec = QuantSpec(num_bits=4, ch_axis=ch_axis)
    x = torch.randn(3, 50)
    x = x.abs() if positive else x
    quantizer = calibrated(
        LSQQuantizer, x, spec=spec, learn_zero_point=learn_zero_point
    )
    expected = quantizer(x)
    for parameter in quantizer.learnable():
        parameter.requires_grad_()
    assert len(quantizer.learnable()) == 1 + learn_zero_point
    out = quantizer(x)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    assert all(p.grad is not None for p in quantizer.learnable())


def test_lsq_gradient_factor():
    # LSQ section 2.2: g = 1 / sqrt(N Q_P)
    x = torch.rand(100) * 2
    quantizer = calibrated(LSQQuantizer, x)
    quantizer.scale.requires_grad_()
    quantizer(torch.full((100,), 50.0)).sum().backward()
    # 100 clipped values with gradient Q_P each
    expected = 100 * 15 / (100 * 15) ** 0.5
    assert quantizer.scale.grad.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('drop_prob', [0.0, 0.5])
@pytest.mark.parametrize('ch_axis', [None, 1])
def test_an_image_without_proposals_trains_nothing(ch_axis, drop_prob):
    spec = QuantSpec(num_bits=4, ch_axis=ch_axis)
    quantizer = calibrated(LSQQuantizer, torch.rand(8, 4), spec=spec)
    quantizer.scale.requires_grad_()
    quantizer.drop_prob = drop_prob
    x = torch.zeros(0, 4, requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.shape == (0, 4)
    assert not quantizer.scale.grad.any()


@pytest.mark.parametrize('signed', [True, False])
def test_gradient_descent_on_the_scale_lowers_the_error(signed):
    x = torch.randn(4000)
    x = x if signed else x.abs()
    quantizer = calibrated(LSQQuantizer, x, spec=QuantSpec(num_bits=2))
    quantizer.scale.requires_grad_()
    optimizer = torch.optim.Adam(quantizer.learnable(), lr=5e-3)
    errors = []
    for _ in range(120):
        loss = (quantizer(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append(loss.item())
    assert errors[-1] < 0.75 * errors[0]
    assert errors[-1] < 1.05 * min(errors)


def test_settle_restores_a_valid_grid():
    quantizer = calibrated(
        LSQQuantizer, torch.randn(50), learn_zero_point=True
    )
    quantizer.scale.data.fill_(-1.0)
    quantizer.offset.data.fill_(5.4)
    quantizer.settle()
    assert quantizer.scale.item() > 0
    assert quantizer.zero_point.item() == quantizer.offset.item() == 5
    quantizer.offset.data.fill_(99.0)
    quantizer.settle()
    assert quantizer.zero_point.item() == quantizer.quant_max
    affine = calibrated(AffineQuantizer, torch.randn(50))
    before = copy.deepcopy(affine.state_dict())
    affine.settle()
    assert all(
        torch.equal(v, before[k]) for k, v in affine.state_dict().items()
    )


def test_drop_rate_and_limits():
    x, x_hat = torch.zeros(200, 100), torch.ones(200, 100)
    assert torch.equal(random_drop(x_hat, x, drop_prob=0.0), x_hat)
    assert torch.equal(random_drop(x_hat, x, drop_prob=1.0), x)
    for drop_prob in (0.25, 0.5, 0.8):
        share = 1 - random_drop(x_hat, x, drop_prob=drop_prob).mean()
        # 5 sigma of 20,000 draws
        assert abs(share - drop_prob) < 5 * (0.25 / 20_000) ** 0.5


def test_dropping_quantizer_mixes_elements_and_is_seeded():
    x = torch.randn(1000)
    quantizer = calibrated(AffineQuantizer, x)
    x_hat = quantizer(x)
    quantizer.drop_prob = 0.5
    torch.manual_seed(3)
    out = quantizer(x)
    assert ((out == x) | (out == x_hat)).all()
    assert 400 < (out == x).sum() < 600
    torch.manual_seed(3)
    assert torch.equal(out, quantizer(x))


def test_drop_keeps_gradients_of_both_kinds():
    x = torch.full((1000,), 9.0, requires_grad=True)
    quantizer = calibrated(AffineQuantizer, torch.rand(50))
    quantizer.drop_prob = 0.5
    out = quantizer(x)
    out.sum().backward()
    # float elements pass the gradient, clipped ones stop it
    assert torch.equal(x.grad, (out == 9.0).float())


def test_calibration_drops_the_observer_and_reports_state():
    spec = QuantSpec(num_bits=4, ch_axis=0)
    quantizer = AffineQuantizer(
        spec, observer=MovingAverageMinMaxObserver(spec)
    )
    assert 'uncalibrated' in repr(quantizer)
    quantizer.observing = True
    x = torch.randn(3, 4)
    assert torch.equal(quantizer(x), x)
    assert quantizer.calibrate()
    assert quantizer.observer is None
    assert '4 bit, asymmetric, per channel 0, calibrated' in repr(quantizer)


def test_base_leaves_the_formulas_to_subclasses():
    quantizer = Quantizer(QuantSpec())
    with pytest.raises(NotImplementedError):
        quantizer.fake_quantize(torch.ones(1))
    with pytest.raises(NotImplementedError):
        quantizer.set_range(torch.ones(1), torch.ones(1))
