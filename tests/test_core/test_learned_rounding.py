import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskptq.core import (
    AffineQuantizer,
    LearnedRounding,
    MinMaxObserver,
    QuantSpec,
)
from taskptq.core.learned_rounding import (
    inverse_rectified_sigmoid,
    odd_power,
    rectified_sigmoid,
    rounding_penalty,
)


def rounding_of(weight, *, num_bits=4, symmetric=False, ch_axis=0):
    spec = QuantSpec(num_bits=num_bits, symmetric=symmetric, ch_axis=ch_axis)
    quantizer = AffineQuantizer(spec, observer=MinMaxObserver(spec))
    quantizer.observer.observe(weight)
    quantizer.calibrate()
    return LearnedRounding(quantizer, weight), quantizer


def scale_of(quantizer, weight):
    shape = [1] * weight.dim()
    if quantizer.spec.ch_axis is not None:
        shape[quantizer.spec.ch_axis] = -1
    return quantizer.scale.reshape(shape)


@pytest.mark.parametrize('num_bits', range(2, 9))
@pytest.mark.parametrize('ch_axis', [None, 0, 1])
@pytest.mark.parametrize('symmetric', [True, False])
def test_starts_at_the_float_weight_and_ends_on_the_grid(
    num_bits, ch_axis, symmetric
):
    weight = torch.randn(5, 6, 3, 3)
    rounding, quantizer = rounding_of(
        weight, num_bits=num_bits, symmetric=symmetric, ch_axis=ch_axis
    )
    low = quantizer.dequantize(torch.full((5, 6, 3, 3), quantizer.quant_min))
    high = quantizer.dequantize(torch.full((5, 6, 3, 3), quantizer.quant_max))
    inside = (weight >= low) & (weight <= high)
    soft = rounding()
    assert inside.float().mean() > 0.8
    torch.testing.assert_close(
        soft[inside], weight[inside], rtol=1e-4, atol=1e-5
    )
    rounding.soft = False
    hard = rounding()
    assert torch.equal(hard, quantizer.dequantize(rounding.codes()))
    assert torch.equal(quantizer.quantize(hard), rounding.codes())
    step = scale_of(quantizer, weight)
    assert ((hard - weight).abs() <= step * 0.501).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 8))
def test_any_alpha_stays_within_one_step(seed, num_bits):
    torch.manual_seed(seed)
    weight = torch.randn(4, 12)
    rounding, quantizer = rounding_of(weight, num_bits=num_bits)
    rounding.alpha.data = torch.randn_like(weight) * 4
    step = scale_of(quantizer, weight)
    for soft in (True, False):
        rounding.soft = soft
        assert ((rounding() - weight).abs() <= step * 1.001).all()
    codes = rounding.codes()
    assert codes.min() >= quantizer.quant_min
    assert codes.max() <= quantizer.quant_max


def test_decided_soft_weights_equal_hard_ones():
    rounding, _ = rounding_of(torch.randn(4, 12))
    rounding.alpha.data = torch.where(torch.rand(4, 12) < 0.5, -6.0, 6.0)
    soft = rounding()
    rounding.soft = False
    torch.testing.assert_close(rounding(), soft)
    assert rounding.settled() == 48
    assert rounding.regularization(2.0).item() == 0


def test_penalty_values():
    alpha = torch.tensor([-9.0, 9.0])
    assert rounding_penalty(alpha, 2.0).item() == 0
    assert rounding_penalty(torch.zeros(3), 2.0).item() == 1
    # h = 0.75: 1 - 0.5^beta
    alpha = inverse_rectified_sigmoid(torch.tensor([0.75]))
    for beta in (2.0, 20.0):
        expected = 1 - 0.5**beta
        found = rounding_penalty(alpha, beta).item()
        assert found == pytest.approx(expected, rel=1e-5)


def test_penalty_drives_roundings_apart():
    alpha = torch.randn(100, requires_grad=True)
    start = rectified_sigmoid(alpha.detach())
    optimizer = torch.optim.Adam([alpha], lr=0.1)
    for _ in range(100):
        loss = rounding_penalty(alpha, 2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    h = rectified_sigmoid(alpha.detach())
    assert ((h < 0.01) | (h > 0.99)).float().mean() > 0.95
    clear = (start - 0.5).abs() > 0.05
    assert torch.equal((h > 0.5)[clear], (start > 0.5)[clear])


def test_rectified_sigmoid_inverts():
    h = torch.linspace(0, 1, 51)
    torch.testing.assert_close(
        rectified_sigmoid(inverse_rectified_sigmoid(h)),
        h,
        rtol=1e-5,
        atol=1e-6,
    )


def test_learning_beats_nearest_on_correlated_inputs():
    torch.manual_seed(0)
    x = torch.randn(300, 3) @ torch.randn(3, 16)
    weight = torch.randn(8, 16)
    rounding, quantizer = rounding_of(weight, num_bits=3)
    nearest = ((quantizer.fake_quantize(weight) - weight) @ x.T).square()
    optimizer = torch.optim.Adam([rounding.alpha], lr=2e-2)
    for step in range(400):
        loss = ((rounding() - weight) @ x.T).square().mean()
        if step >= 80:
            beta = 2 + 18 * (400 - step) / 320
            loss = loss + 2.0 * rounding.regularization(beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rounding.soft = False
    error = ((rounding() - weight) @ x.T).square().mean()
    assert error < 0.6 * nearest.mean()


@pytest.mark.parametrize('num_bits', [2, 4])
@pytest.mark.parametrize('beta', [2, 6, 20])
def test_gradients_equal_those_of_the_formula(num_bits, beta):
    weight = torch.randn(6, 10)
    rounding, _ = rounding_of(weight, num_bits=num_bits)
    with torch.no_grad():  # some decided, some under way
        rounding.alpha.add_(2 * torch.randn_like(weight))
    direction = torch.randn_like(weight)
    h = rectified_sigmoid(rounding.alpha)
    codes = (rounding.base + h).clamp(rounding.quant_min, rounding.quant_max)
    formula = (codes - rounding.zero_point) * rounding.scale
    penalty = 0.3 * rounding_penalty(rounding.alpha, beta)
    ((formula * direction).sum() + penalty).backward()
    expected = rounding.alpha.grad.clone()

    rounding.alpha.grad = None
    out = rounding()
    assert torch.equal(out, formula)
    (out * direction).sum().backward()
    rounding.add_penalty_gradient(
        weight=torch.tensor(0.3 / weight.numel()), beta=beta
    )
    torch.testing.assert_close(
        rounding.alpha.grad, expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize('beta', [1, 3, 0])
def test_penalty_gradient_needs_an_even_exponent(beta):
    rounding, _ = rounding_of(torch.randn(2, 3))
    rounding().sum().backward()
    with pytest.raises(ValueError, match=f'beta={beta} must be even'):
        rounding.add_penalty_gradient(weight=torch.tensor(1.0), beta=beta)


def test_penalty_gradient_follows_a_backward():
    rounding, _ = rounding_of(torch.randn(2, 3))
    with pytest.raises(RuntimeError, match='call forward'):
        rounding.add_penalty_gradient(weight=torch.tensor(1.0), beta=2)


@pytest.mark.parametrize('exponent', [1, 3, 5, 7, 19])
def test_odd_power(exponent):
    x = torch.linspace(-1.2, 1.2, 25, dtype=torch.float64)
    torch.testing.assert_close(odd_power(x, exponent), x**exponent)


def test_straight_through_is_hard_forward_and_soft_backward():
    weight = torch.randn(6, 10)
    rounding, quantizer = rounding_of(weight)
    direction = torch.randn_like(weight)
    (rounding() * direction).sum().backward()
    soft = rounding.alpha.grad.clone()

    rounding.alpha.grad = None
    rounding.straight_through = True
    out = rounding()
    assert torch.equal(out, quantizer.fake_quantize(out))
    assert not torch.equal(out, weight)
    (out * direction).sum().backward()
    # Soft codes at the upper end of the grid are clipped, hard ones not.
    inside = soft != 0
    assert inside.float().mean() > 0.8
    assert torch.equal(rounding.alpha.grad[inside], soft[inside])
    assert rounding.settled() == weight.numel()


@pytest.mark.parametrize('hard', [False, True])
@pytest.mark.parametrize('ch_axis', [0, 1])
def test_pieces_change_no_bit_of_a_rounding(monkeypatch, hard, ch_axis):
    weight = torch.randn(12, 8, 3, 3)
    _, quantizer = rounding_of(weight, ch_axis=ch_axis)
    results = []
    for piece in (64, 10**9):
        monkeypatch.setattr('taskptq.core.pieces.PIECE', piece)
        rounding = LearnedRounding(quantizer, weight)
        rounding.straight_through = hard
        out = rounding()
        (out * weight.cos()).sum().backward()
        rounding.add_penalty_gradient(weight=torch.tensor([0.1]), beta=4)
        results.append((out.detach(), rounding.alpha.grad))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
