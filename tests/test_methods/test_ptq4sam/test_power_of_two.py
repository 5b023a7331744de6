import pytest
import torch

from taskptq.core import MinMaxObserver, QuantSpec
from taskptq.methods.ptq4sam.power_of_two import (
    PowerOfTwoQuantizer,
    power_of_two_fake_quantize,
)


def quantizer_of(*, num_bits=4, tau=1, maximum=1.0):
    quantizer = PowerOfTwoQuantizer(QuantSpec(num_bits=num_bits), tau=tau)
    quantizer.set_bounds(signed=False)
    quantizer.set_range(torch.zeros(1), torch.tensor([maximum]))
    quantizer.enabled = True
    return quantizer


# q = round(-tau log2 x) by hand
GOLDEN = {
    1: ([1.0, 0.5, 0.3, 0.26, 0.1, 1e-3], [0, 1, 2, 2, 3, 10]),
    2: ([1.0, 0.5, 0.3, 0.26, 0.1, 6e-3], [0, 2, 3, 4, 7, 15]),
    4: ([1.0, 0.5, 0.3, 0.26, 0.1, 0.08], [0, 4, 7, 8, 13, 15]),
}


@pytest.mark.parametrize('tau', [1, 2, 4])
def test_golden_vectors(tau):
    quantizer = quantizer_of(tau=tau)
    values, codes = GOLDEN[tau]
    values = torch.tensor(values)
    assert quantizer.quantize(values).tolist() == codes
    expected = [2 ** (-code / tau) for code in codes]
    assert quantizer(values).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('num_bits', range(2, 9))
@pytest.mark.parametrize('tau', [1, 2, 4])
def test_grid(num_bits, tau):
    quantizer = quantizer_of(num_bits=num_bits, tau=tau, maximum=0.8)
    x = torch.cat([torch.logspace(-40, 0, 500, base=2), torch.zeros(3)])
    out = quantizer(x)
    codes = quantizer.quantize(x)
    assert codes.min() == 0
    assert codes.max() <= 2**num_bits
    torch.testing.assert_close(quantizer.dequantize(codes), out)
    assert out.unique().numel() <= 2**num_bits + 1
    torch.testing.assert_close(quantizer(out), out)
    assert (out.sort().values == out[x.argsort()]).all()
    # Relative error of at most half a step of the exponent.
    seen = (out > 0) & (x <= 0.8)
    ratio = (out[seen] / x[seen]).log2().abs()
    assert (ratio <= 0.5 / tau + 1e-5).all()


@pytest.mark.parametrize('num_bits', range(2, 9))
@pytest.mark.parametrize('tau', [1, 2, 4])
def test_zero_and_maximum_are_exact(num_bits, tau):
    quantizer = quantizer_of(num_bits=num_bits, tau=tau, maximum=0.37)
    out = quantizer(torch.tensor([0.0, 0.37, 0.5]))
    assert out[0] == 0
    assert out[1] == torch.tensor(0.37)
    assert out[2] == torch.tensor(0.37)
    assert quantizer.quantize(torch.zeros(1)).item() == 2**num_bits


def test_below_the_last_level_becomes_zero():
    quantizer = quantizer_of(num_bits=2)
    out = quantizer(torch.tensor([0.125, 0.09, 0.088, 0.06]))
    assert out.tolist() == [0.125, 0.125, 0.0, 0.0]


def test_gradients_by_hand():
    quantizer = quantizer_of()
    quantizer.gain.requires_grad_()
    # on the grid at 0.25, clipped to 1, rounded to 0, exactly 0
    x = torch.tensor([0.3, 1.5, 1e-9, 0.0], requires_grad=True)
    for index, slope in enumerate([0.25 - 0.3, 1.0, -1e-9, 0.0]):
        quantizer.gain.grad = x.grad = None
        quantizer(x)[index].backward()
        expected = [0.0] * 4
        expected[index] = 0.0 if index == 1 else 1.0
        assert x.grad.tolist() == expected
        assert quantizer.gain.grad.item() == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize('tau', [1, 2, 4])
@pytest.mark.parametrize('num_bits', [4, 6])
def test_gradient_of_the_scale_is_that_of_the_mean_output(tau, num_bits):
    """Against finite differences, over values spread evenly."""
    x = torch.linspace(0, 1.5, 200_001)
    tau_, levels = torch.tensor(tau), 2**num_bits

    def mean(scale):
        out = power_of_two_fake_quantize(
            x, scale=scale, tau=tau_, num_levels=levels
        )
        return out.double().mean()

    scale = torch.tensor(1.0, requires_grad=True)
    mean(scale).backward()
    numeric = (mean(torch.tensor(1.05)) - mean(torch.tensor(0.95))) / 0.1
    assert scale.grad.item() == pytest.approx(float(numeric), rel=0.06)


@pytest.mark.parametrize('tau', [1, 2, 4])
def test_a_wrong_scale_is_learned_back(tau):
    """Adam on the error of A V comes close to the best scale of a scan."""
    attention = torch.softmax(2 * torch.randn(4, 40, 30), -1)
    value = torch.randn(4, 30, 8)
    target = attention @ value
    high = float(attention.max())

    def loss(quantizer):
        return (quantizer(attention) @ value - target).square().mean()

    best = min(
        float(loss(quantizer_of(tau=tau, maximum=high * r)))
        for r in torch.linspace(0.05, 1, 60)
    )
    quantizer = quantizer_of(tau=tau, maximum=0.2 * high)
    start = loss(quantizer).item()
    quantizer.gain.requires_grad_()
    optimizer = torch.optim.Adam([quantizer.gain], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss(quantizer).backward()
        optimizer.step()
    found = loss(quantizer).item()
    assert start > 1.5 * best
    assert found < best + 0.25 * (start - best)


def test_learned_gain_folds_into_a_positive_scale():
    quantizer = quantizer_of(maximum=0.5)
    (gain,) = quantizer.learnable()
    x = torch.tensor([0.5, 0.26])
    gain.data.fill_(1.5)
    before = quantizer(x)
    quantizer.settle()
    assert quantizer.scale.item() == 0.75
    assert gain.item() == 1
    assert torch.equal(quantizer(x), before)
    # Driven below zero it quantizes on, and its gradient leads back.
    gain.data.fill_(-1)
    gain.requires_grad_()
    out = quantizer(x)
    assert out.isfinite().all()
    ((out - x) ** 2).sum().backward()
    assert gain.grad.item() < 0
    quantizer.settle()
    assert 0 < quantizer.scale.item() < 1e-2
    assert PowerOfTwoQuantizer(QuantSpec()).learnable() == []


HEADS = {'scale': [0.9, 0.1, 0.4], 'tau': [1, 4, 2]}


def per_head(num_bits=4):
    quantizer = quantizer_of(num_bits=num_bits)
    quantizer.set_range(torch.zeros(3), torch.tensor(HEADS['scale']))
    quantizer.tau = torch.tensor(HEADS['tau'], dtype=torch.int32)
    return quantizer


@pytest.mark.parametrize('lead', [(), (2,), (2, 5)])
def test_each_head_has_its_own_grid(lead):
    quantizer = per_head()
    x = torch.rand(*lead, 3, 4, 6)
    out = quantizer(x)
    assert out.shape == x.shape
    codes = quantizer.quantize(x)
    torch.testing.assert_close(quantizer.dequantize(codes), out)
    for head, (scale, tau) in enumerate(zip(*HEADS.values(), strict=True)):
        one = quantizer_of(tau=tau, maximum=scale)
        torch.testing.assert_close(
            out[..., head, :, :], one(x[..., head, :, :])
        )


def test_heads_learn_apart_and_drop():
    quantizer = per_head()
    quantizer.gain.requires_grad_()
    x = torch.rand(2, 3, 4, 6)
    quantizer(x)[:, 1].sum().backward()
    assert quantizer.gain.grad.shape == (3,)
    assert quantizer.gain.grad[[0, 2]].tolist() == [0, 0]
    assert quantizer.gain.grad[1] != 0
    quantizer.gain.requires_grad_(False)
    full = quantizer(x)
    quantizer.drop_prob = 0.5
    dropped = quantizer(x)
    kept = dropped == x
    assert torch.equal(torch.where(kept, x, full), dropped)
    assert 0.3 < kept.float().mean() < 0.7


@pytest.mark.parametrize('shape', [(4, 6), (2, 4, 6), (3, 4, 4, 6)])
def test_other_numbers_of_heads_are_refused(shape):
    with pytest.raises(ValueError, match=r'3 scales, one per head'):
        per_head()(torch.rand(shape))


def test_per_head_state_round_trip():
    quantizer = per_head()
    fresh = PowerOfTwoQuantizer(QuantSpec(num_bits=4))
    fresh.load_state_dict(quantizer.state_dict())
    fresh.enabled = True
    x = torch.rand(2, 3, 4, 6)
    assert fresh.tau.dtype == torch.int32
    assert torch.equal(fresh(x), quantizer(x))


def test_range_from_an_observer():
    spec = QuantSpec(num_bits=4)
    quantizer = PowerOfTwoQuantizer(spec, observer=MinMaxObserver(spec))
    quantizer.observer.observe(torch.rand(4, 5) * 0.5)
    assert quantizer.calibrate()
    assert 0 < quantizer.scale.item() <= 0.5
    assert quantizer.grid.tolist() == [0, 15]


@pytest.mark.parametrize('tau', [-1, 3, 8])
def test_other_granularities_are_refused(tau):
    with pytest.raises(ValueError, match=f'tau={tau}'):
        PowerOfTwoQuantizer(QuantSpec(), tau=tau)
