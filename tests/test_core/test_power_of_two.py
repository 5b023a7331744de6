import pytest
import torch

from taskptq.core import MinMaxObserver, PowerOfTwoQuantizer, QuantSpec


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


def test_gradients_pass_and_the_scale_learns():
    quantizer = quantizer_of()
    quantizer.scale.requires_grad_()
    x = torch.tensor([0.0, 0.3, 0.5, 1e-9], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[0] == x.grad[3] == 0
    # d x_hat / d x = x_hat / x through the rounded exponent
    assert x.grad[1].item() == pytest.approx(0.25 / 0.3, rel=1e-5)
    assert quantizer.scale.grad.isfinite()
    assert quantizer.learnable() == [quantizer.scale]
    quantizer.scale.data.fill_(-1)
    quantizer.settle()
    assert quantizer.scale.item() > 0


def test_range_from_an_observer():
    spec = QuantSpec(num_bits=4)
    quantizer = PowerOfTwoQuantizer(spec, observer=MinMaxObserver(spec))
    quantizer.observer.observe(torch.rand(4, 5) * 0.5)
    assert quantizer.calibrate()
    assert 0 < quantizer.scale.item() <= 0.5
    assert quantizer.grid.tolist() == [0, 15]


@pytest.mark.parametrize('tau', [0, 3, 8])
def test_other_granularities_are_refused(tau):
    with pytest.raises(ValueError, match=f'tau={tau}'):
        PowerOfTwoQuantizer(QuantSpec(), tau=tau)
