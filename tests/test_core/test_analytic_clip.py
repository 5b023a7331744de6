"""The analytic clip: its constants, and its ranges on known distributions."""

import math

import pytest
import torch

from taskptq.core import ACIQObserver, MinMaxObserver, QuantSpec
from taskptq.core.analytic_clip import clip_factor
from taskptq.core.functional import fake_quantize, range_to_affine

# Banner et al., NeurIPS 2019, give these to two digits.
PUBLISHED = {
    ('laplace', 2): 2.83,
    ('laplace', 3): 3.89,
    ('laplace', 4): 5.03,
    ('gauss', 2): 1.71,
    ('gauss', 3): 2.15,
    ('gauss', 4): 2.55,
}


@pytest.mark.parametrize(('distribution', 'num_bits'), PUBLISHED)
def test_factors_are_the_published_ones(distribution, num_bits):
    factor = clip_factor(num_bits, distribution=distribution, half=False)
    assert factor == pytest.approx(PUBLISHED[distribution, num_bits], abs=0.01)
    halved = clip_factor(num_bits, distribution=distribution, half=True)
    more = clip_factor(num_bits + 1, distribution=distribution, half=False)
    assert halved == more > factor


def density(x, distribution):
    if distribution == 'laplace':
        return 0.5 * (-x.abs()).exp()
    return (-x.square() / 2).exp() / math.sqrt(2 * math.pi)


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('num_bits', [2, 4, 8])
@pytest.mark.parametrize('distribution', ['laplace', 'gauss'])
def test_factor_minimizes_the_integral(distribution, num_bits, half):
    x = torch.linspace(0, 60, 600_001, dtype=torch.float64)
    p = density(x, distribution)

    def error(alpha):
        clipped = torch.trapezoid((x - alpha).clamp(min=0).square() * p, x)
        width = (1 if half else 2) * alpha / 2**num_bits
        return float(clipped) + 0.5 * width**2 / 12

    best = clip_factor(num_bits, distribution=distribution, half=half)
    assert error(best) < min(error(0.98 * best), error(1.02 * best))


def samples(distribution, count=200_000):
    generator = torch.Generator().manual_seed(0)
    if distribution == 'gauss':
        return torch.randn(count, generator=generator)
    u = torch.rand(count, generator=generator) - 0.5
    return -u.sign() * (1 - 2 * u.abs()).clamp(min=1e-9).log()


def observed(x, **kwargs):
    options = {k: kwargs.pop(k) for k in ('distribution',) if k in kwargs}
    observer = ACIQObserver(QuantSpec(**kwargs), **options)
    for part in torch.chunk(x, 2) if kwargs.get('ch_axis') is None else [x]:
        observer.observe(part)
    return observer


@pytest.mark.parametrize('distribution', ['laplace', 'gauss'])
def test_range_of_a_known_distribution(distribution):
    x = samples(distribution)
    for scale, centre in ((1.0, 0.0), (3.0, 2.0)):
        low, high = observed(x * scale + centre, num_bits=3).compute_range()
        alpha = scale * PUBLISHED[distribution, 3]
        assert float(low) == pytest.approx(centre - alpha, rel=0.03)
        assert float(high) == pytest.approx(centre + alpha, rel=0.03)


@pytest.mark.parametrize('distribution', ['laplace', 'gauss'])
def test_what_a_relu_leaves(distribution):
    x = samples(distribution).relu()
    low, high = observed(x, num_bits=3).compute_range()
    assert float(low) == 0
    factor = clip_factor(3, distribution=distribution, half=True)
    assert float(high) == pytest.approx(factor, rel=0.03)


def mean_squared_error(x, observer):
    low, high = observer.compute_range()
    quant_min, quant_max = observer.spec.bounds(signed=observer.signed)
    scale, zero_point = range_to_affine(
        low,
        high,
        symmetric=observer.spec.symmetric,
        quant_min=quant_min,
        quant_max=quant_max,
    )
    found = fake_quantize(
        x,
        scale=scale,
        zero_point=zero_point,
        quant_min=quant_min,
        quant_max=quant_max,
    )
    return float((found - x).square().mean())


@pytest.mark.parametrize('num_bits', [2, 4])
@pytest.mark.parametrize('distribution', ['laplace', 'gauss'])
def test_less_error_than_the_full_range(distribution, num_bits):
    x = samples(distribution)
    analytic = observed(x, num_bits=num_bits)
    full = MinMaxObserver(QuantSpec(num_bits=num_bits))
    full.observe(x)
    assert mean_squared_error(x, analytic) < 0.8 * mean_squared_error(x, full)


def test_the_assumption_can_be_given():
    x = samples('gauss')
    high = {
        name: float(
            observed(x, num_bits=4, distribution=name).compute_range()[1]
        )
        for name in ('laplace', 'gauss', None)
    }
    assert high['gauss'] == high[None]
    # b of a normal tensor is E|x| = 0.80 sigma; 5.03 b is beyond the values
    assert high['laplace'] > 1.4 * high['gauss']
    with pytest.raises(ValueError, match="distribution='cauchy'"):
        ACIQObserver(QuantSpec(), distribution='cauchy')
    with pytest.raises(ValueError, match="distribution='cauchy'"):
        clip_factor(4, distribution='cauchy', half=False)


def test_channels_have_ranges_of_their_own():
    x = samples('laplace', 40_000).view(4, 10_000)
    x = x * torch.tensor([1.0, 2.0, 0.0, 1.0])[:, None]
    x[3] = x[3].abs()
    for symmetric in (True, False):
        observer = observed(x, num_bits=4, ch_axis=0, symmetric=symmetric)
        low, high = observer.compute_range()
        assert float(high[1] / high[0]) == pytest.approx(2, rel=0.1)
        assert low[2] == high[2] == 0
        # On a symmetric grid the empty half costs a bit.
        factor = clip_factor(4, distribution='laplace', half=not symmetric)
        assert float(high[3]) == pytest.approx(factor, rel=0.1)
        assert float(low[3]) >= 0


def test_never_beyond_the_observed_range():
    x = torch.tensor([-0.1, -0.05, 0.0, 0.02, 0.03])
    low, high = observed(x, num_bits=8).compute_range()
    assert float(low) == pytest.approx(-0.1)
    assert float(high) == pytest.approx(0.03)


def test_order_of_batches_does_not_matter():
    x = samples('laplace', 10_000)
    ranges = [
        observed(part, num_bits=4).compute_range() for part in (x, x.flip(0))
    ]
    assert ranges[0] == ranges[1]
