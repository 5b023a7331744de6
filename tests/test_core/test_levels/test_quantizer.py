"""The quantizer of a few levels."""

import copy

import pytest
import torch

from taskptq.core import (
    AffineQuantizer,
    LevelQuantizer,
    MinMaxObserver,
    MSEObserver,
    QuantSpec,
)
from taskptq.core.levels import LEVELS
from taskptq.core.levels.pulls import FlipPull
from taskptq.core.settings import SettingError


@pytest.fixture(params=sorted(LEVELS))
def name(request):
    return request.param


@pytest.fixture
def weight():
    return torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))


def quantizer_of(name, weight=None, *, ch_axis=0, **settings):
    spec = QuantSpec(num_bits=LEVELS[name]().num_bits, ch_axis=ch_axis)
    quantizer = LevelQuantizer(spec, levels=name, **settings)
    if weight is not None:
        quantizer.calibrate_weight(weight)
    quantizer.enabled = True
    return quantizer


@pytest.mark.parametrize('ch_axis', [None, 0, 1])
def test_codes_and_back(name, weight, ch_axis):
    quantizer = quantizer_of(name, weight, ch_axis=ch_axis)
    codes = quantizer.quantize(weight)
    assert codes.dtype == torch.int32
    assert codes.shape == weight.shape
    assert 0 <= int(codes.min()) <= int(codes.max()) < quantizer.num_levels
    w_hat = quantizer(weight)
    assert torch.equal(w_hat, quantizer.dequantize(codes))
    assert torch.equal(quantizer(w_hat), w_hat)
    assert torch.equal(quantizer.quantize(w_hat), codes)


def test_state_goes_round_bit_for_bit(name, weight):
    quantizer = quantizer_of(name, weight)
    other = quantizer_of(name)
    assert not other.calibrated
    other.load_state_dict(quantizer.state_dict())
    assert other.calibrated
    assert torch.equal(other(weight), quantizer(weight))
    assert torch.equal(copy.deepcopy(quantizer)(weight), quantizer(weight))


def test_gradients_of_weight_and_levels(weight):
    quantizer = quantizer_of('ternary', weight)
    quantizer.coefficients.requires_grad_(True)
    weight = weight.clone().requires_grad_()
    gradient = torch.randn(weight.shape)
    quantizer(weight).backward(gradient)
    codes = quantizer.quantize(weight.detach())
    expected = (gradient * (codes - 1)).flatten(1).sum(dim=1)
    torch.testing.assert_close(quantizer.coefficients.grad.flatten(), expected)
    outermost = quantizer.levels().detach()[:, -1].view(-1, 1, 1, 1)
    inside = weight.detach().abs() <= outermost
    torch.testing.assert_close(weight.grad, gradient * inside)


def test_pull_is_added_to_the_gradient():
    quantizer = quantizer_of(
        'binary', estimator='identity', pull={'type': 'fixed', 'gamma': 0.5}
    )
    quantizer.set_coefficients(torch.tensor([[0.5]]))
    weight = torch.tensor([[0.6, -0.2, 0.1, -0.9]], requires_grad=True)
    gradient = torch.tensor([[0.3, -0.4, 0.2, 0.1]])
    quantizer(weight).backward(gradient)
    pull = 0.5 * torch.tensor([[0.1, 0.3, -0.4, -0.4]])
    torch.testing.assert_close(weight.grad, gradient + pull)


def test_flip_pull_counts_changed_codes():
    quantizer = quantizer_of('binary', estimator='clipped', pull='flip')
    quantizer.set_coefficients(torch.tensor([[0.5]]))
    assert isinstance(quantizer.pull, FlipPull)
    for value in (0.05, -0.2):
        weight = torch.tensor([[0.6, value, 0.1, -0.9]], requires_grad=True)
        quantizer(weight).sum().backward()
    assert quantizer.pull.flip_rate == 0.25


def test_no_gradient_costs_nothing(weight):
    with torch.no_grad():
        assert not quantizer_of('dual', weight)(weight).requires_grad


def test_activations_are_fitted_to_a_histogram():
    spec = QuantSpec(num_bits=1)
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) + 2
    quantizer = LevelQuantizer(
        spec, observer=MSEObserver(spec), levels='shifted'
    )
    for part in x.split(1000):
        quantizer.observer.observe(part)
    assert quantizer.calibrate()
    low, high = quantizer.levels()[0].tolist()
    assert low == pytest.approx(2 - 0.798, abs=0.05)
    assert high == pytest.approx(2 + 0.798, abs=0.05)


def test_observers_without_a_histogram_are_refused():
    spec = QuantSpec(num_bits=1)
    quantizer = LevelQuantizer(
        spec, observer=MinMaxObserver(spec), levels='shifted'
    )
    quantizer.observer.observe(torch.randn(9))
    with pytest.raises(ValueError, match='give the MSEObserver'):
        quantizer.calibrate()


def test_weights_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match='NaN or infinity'):
        quantizer_of('binary', torch.tensor([[1.0, torch.nan]]))


def test_more_bits_hand_over_to_a_uniform_grid():
    settings = {'levels': 'ternary', 'estimator': 'identity'}
    few, kept = LevelQuantizer.for_spec(QuantSpec(num_bits=2), settings)
    many, none = LevelQuantizer.for_spec(QuantSpec(num_bits=8), settings)
    assert (few, kept) == (LevelQuantizer, settings)
    assert (many, none) == (AffineQuantizer, {})


@pytest.mark.parametrize(
    ('bits', 'settings', 'message'),
    [
        (2, {'levels': 'binary'}, 'give binary levels 1 bits'),
        (2, {'levels': 'octal'}, "'ternary'"),
        (2, {'estimator': 'none'}, "'clipped'"),
        (2, {'pull': 'hard'}, "'flip'"),
        (2, {'pull': {'type': 'fixed', 'strength': 1}}, 'no such argument'),
    ],
)
def test_wrong_settings_are_refused(bits, settings, message):
    with pytest.raises(SettingError, match=message):
        LevelQuantizer(QuantSpec(num_bits=bits), **settings)


def test_a_uniform_grid_of_one_bit_points_here():
    with pytest.raises(SettingError, match='LevelQuantizer'):
        AffineQuantizer(QuantSpec(num_bits=1))


def test_only_grids_with_a_zero_take_masks(weight):
    mask = torch.rand(weight.shape) > 0.5
    ternary = quantizer_of('ternary', weight)
    ternary.mask = mask
    assert ternary(weight)[~mask].eq(0).all()
    assert ternary.quantize(weight)[~mask].eq(1).all()
    binary = quantizer_of('binary', weight)
    binary.mask = mask
    with pytest.raises(ValueError, match='no zero for a sparse weight'):
        binary(weight)


@pytest.mark.parametrize('name', ['binary', 'ternary', 'mid-rise'])
def test_integers_are_the_weight_bit_for_bit(name, weight):
    quantizer = quantizer_of(name, weight)
    codes = quantizer.quantize(weight)
    form = quantizer.integer_form(codes)
    assert not form.zero_point.any()
    values = form.codes * form.scale.view(-1, 1, 1, 1)
    assert torch.equal(values, quantizer.dequantize(codes))
    ends = form.quant_min, form.quant_min + 2**form.num_bits - 1
    assert ends[0] <= int(form.codes.min()) <= int(form.codes.max()) <= ends[1]


def test_other_levels_have_no_integers(weight):
    quantizer = quantizer_of('two-plane', weight)
    assert quantizer.integer_form(quantizer.quantize(weight)) is None


def test_faults_of_a_files_state(weight):
    quantizer = quantizer_of('two-plane')
    wrong = {
        'levels have 2 per channel': torch.ones(4, 1),
        's1 >= s2 >= 0': torch.tensor([[0.2, 0.5]]),
    }
    for message, coefficients in wrong.items():
        found = list(quantizer.state_faults({'coefficients': coefficients}))
        assert len(found) == 1
        assert message in found[0]


def test_report_of_its_grid(weight):
    text = repr(quantizer_of('ternary', weight))
    assert 'ternary, per channel 0, calibrated' in text


def test_a_pull_may_move_weights_after_a_step(weight):
    for name in ('none', 'fixed', 'flip', 'mixture'):
        quantizer = quantizer_of('binary', weight, pull=name)
        assert quantizer.after_step(weight) is None
    pull = {'type': 'backtrack', 'strength': 0.5, 'share': 0.25}
    quantizer = quantizer_of('binary', weight, pull=pull)
    assert quantizer.after_step(weight) is None  # no step before it
    moved = quantizer.after_step(weight)
    assert moved.shape == weight.shape
    gain = (moved / weight).flatten(1)
    # Each output channel stays or is moved as a whole.
    assert set(gain.mean(dim=1).round(decimals=4).tolist()) <= {1.0, 1.5}
    assert (gain.amax(dim=1) - gain.amin(dim=1)).max() < 1e-5
