import copy

import pytest
import torch
from torch import nn

from taskptq.core import (
    LSQQuantizer,
    MinMaxObserver,
    MSEObserver,
    QuantizerConfig,
    QuantSpec,
    dropping,
    enable,
    float_only,
    observing,
    quantizing,
    transforming,
)
from taskptq.methods.qdetr.alignment import (
    AlignedQuantizer,
    AlignmentObserver,
    standardize,
)

HEADS, CHANNELS = 3, 8


def queries(*, batch=4, tokens=50, seed=0):
    """Heads and channels of unlike size and center, tokens of unlike norm."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    size = normal(HEADS, 1, CHANNELS).exp()
    center = 2 * normal(HEADS, 1, CHANNELS)
    norm = (0.3 * normal(batch, 1, tokens, 1)).exp()
    return norm * normal(batch, HEADS, tokens, CHANNELS) * size + center


def make(*, num_bits=8, observer=MinMaxObserver, per_head=False, **kwargs):
    config = QuantizerConfig(
        spec=QuantSpec(num_bits=num_bits),
        per_channel=per_head,
        quantizer=AlignedQuantizer,
        quantizer_kwargs=kwargs,
        observer=observer,
    )
    return config.build(num_heads=HEADS)


def fitted(*batches, **kwargs):
    quantizer = make(**kwargs)
    with observing(quantizer):
        for batch in batches or (queries(),):
            quantizer(batch)
    assert quantizer.calibrate()
    return quantizer


def residual(x, gamma, beta):
    z = standardize(x, eps=1e-5)
    return float((z * gamma[:, None] + beta[:, None] - x).square().sum())


@pytest.mark.parametrize('eps', [1e-5, 0.1])
def test_standardize_is_the_formula(eps):
    x = queries()
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    torch.testing.assert_close(
        standardize(x, eps=eps), (x - mean) / (variance + eps).sqrt()
    )


def test_standardized_queries_have_mean_0_and_variance_1():
    z = standardize(queries(), eps=1e-5)
    zeros = torch.zeros(z.shape[:-1])
    torch.testing.assert_close(z.mean(-1), zeros, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        z.var(-1, correction=0), zeros + 1, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('per_head', [False, True])
def test_off_is_float_and_aligning_is_the_formula(shared, per_head):
    x = queries()
    quantizer = fitted(shared=shared, per_head=per_head)
    assert quantizer.gamma.shape == (1 if shared else HEADS, CHANNELS)
    assert quantizer.scale.shape == (HEADS if per_head else 1,)
    assert quantizer(x) is x
    with transforming(quantizer):
        aligned = quantizer(x)
    expected = (
        quantizer.gamma[:, None] * standardize(x, eps=1e-5)
        + quantizer.beta[:, None]
    )
    torch.testing.assert_close(aligned, expected)
    with quantizing(quantizer):
        torch.testing.assert_close(
            quantizer(x), quantizer.fake_quantize(expected)
        )
    assert quantizer(x) is x


@pytest.mark.parametrize('shared', [False, True])
def test_least_squares_is_closest(shared):
    x = queries()
    quantizer = fitted(x, shared=shared)
    gamma, beta = quantizer.gamma.data, quantizer.beta.data
    best = residual(x, gamma, beta)
    dims = (0, 1, 2) if shared else (0, 2)
    std = x.std(dims, correction=0).reshape(-1, CHANNELS)
    mean = x.mean(dims).reshape(-1, CHANNELS)
    for other in (
        (torch.ones_like(gamma), torch.zeros_like(beta)),
        (std, torch.zeros_like(beta)),
        (std, mean),
        (torch.zeros_like(gamma), mean),
    ):
        assert best < residual(x, *other)
    for _ in range(20):
        noise = 0.02 * torch.randn(2, *gamma.shape)
        assert best <= residual(x, gamma + noise[0], beta + noise[1])


def test_own_gamma_per_head_is_closer_than_a_shared_one():
    x = queries()
    own, shared = (fitted(x, shared=shared) for shared in (False, True))
    assert residual(x, own.gamma, own.beta) < 0.8 * residual(
        x, shared.gamma, shared.beta
    )


def test_queries_that_are_standardized_already_stay_as_they_are():
    x = standardize(queries(), eps=1e-8)
    quantizer = fitted(x)
    with transforming(quantizer):
        torch.testing.assert_close(quantizer(x), x, atol=1e-3, rtol=1e-3)


def test_a_constant_channel_is_kept():
    x = queries()[:1, :, :1].expand(4, -1, 50, -1)
    quantizer = fitted(x)
    assert not quantizer.gamma.any()
    with transforming(quantizer):
        torch.testing.assert_close(quantizer(x), x)


@pytest.mark.parametrize('observer', [MinMaxObserver, MSEObserver])
@pytest.mark.parametrize('per_head', [False, True])
def test_ranges_are_those_of_aligned_queries(observer, per_head):
    x = queries()
    quantizer = fitted(x, num_bits=4, observer=observer, per_head=per_head)
    with transforming(quantizer):
        aligned = quantizer(x)
    plain = QuantizerConfig(
        spec=quantizer.spec if per_head else QuantSpec(num_bits=4),
        per_channel=per_head,
        quantizer=LSQQuantizer,
        observer=observer,
    ).build(num_heads=HEADS)
    with observing(plain):
        plain(aligned)
    plain.calibrate()
    torch.testing.assert_close(quantizer.scale, plain.scale)
    assert torch.equal(quantizer.zero_point, plain.zero_point)


def test_one_pass_over_batches_is_one_over_all():
    parts = [queries(seed=seed) for seed in range(4)]
    one, many = fitted(torch.cat(parts)), fitted(*parts)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(many.state_dict()[name], value)


def test_windows_count_as_images():
    x = queries(batch=6)
    windows = x.unflatten(0, (2, 3))
    one, other = fitted(x), fitted(windows)
    torch.testing.assert_close(other.gamma, one.gamma)
    with quantizing(one), quantizing(other):
        torch.testing.assert_close(other(windows).flatten(0, 1), one(x))


def test_the_sample_is_bounded_and_the_sums_are_not():
    spec = QuantSpec()
    observer = AlignmentObserver(
        spec,
        inner=MinMaxObserver(spec),
        eps=1e-5,
        max_elements=100 * HEADS * CHANNELS,
    )
    whole = AlignmentObserver(spec, inner=MinMaxObserver(spec), eps=1e-5)
    for seed in range(6):
        for each in (observer, whole):
            each.observe(queries(seed=seed))
    assert whole.tokens().shape == (1200, HEADS, CHANNELS)
    assert 50 <= len(observer.tokens()) <= 100
    seen = {tuple(row.flatten().tolist()) for row in whole.tokens()}
    assert all(
        tuple(row.flatten().tolist()) in seen for row in observer.tokens()
    )
    for ours, theirs in zip(
        observer.fit(shared=False), whole.fit(shared=False), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_queries_that_are_not_finite_are_refused():
    quantizer = make()
    with observing(quantizer), pytest.raises(ValueError, match='NaN or inf'):
        quantizer(torch.full((1, HEADS, 2, CHANNELS), torch.nan))


def test_other_queries_than_calibrated_are_refused():
    quantizer = fitted()
    with quantizing(quantizer):
        for shape in ((1, HEADS + 1, 2, CHANNELS), (1, HEADS, 2, 4)):
            with pytest.raises(ValueError, match='calibrate'):
                quantizer(torch.randn(shape))
    with pytest.raises(ValueError, match='eps=0'):
        make(eps=0.0)


def test_without_data_it_stays_float():
    quantizer = make()
    x = queries()
    assert not quantizer.calibrate()
    assert quantizer.learnable() == []
    with quantizing(quantizer):
        assert quantizer(x) is x
    with transforming(quantizer):
        assert quantizer(x) is x


@pytest.mark.parametrize('per_head', [False, True])
@pytest.mark.parametrize('drop_prob', [0.0, 0.5])
def test_gradients_reach_all_that_is_learned(per_head, drop_prob):
    quantizer = fitted(
        num_bits=4,
        per_head=per_head,
        learn_zero_point=True,
        observer=MSEObserver,
    )
    learned = quantizer.learnable()
    assert [id(p) for p in learned[-2:]] == [
        id(quantizer.gamma),
        id(quantizer.beta),
    ]
    assert len(learned) == 4
    for parameter in learned:
        assert not parameter.requires_grad
        parameter.requires_grad_(True)
    x = queries().requires_grad_()
    weights = torch.randn_like(x)
    with quantizing(quantizer), dropping(quantizer, drop_prob=drop_prob):
        (quantizer(x) * weights).sum().backward()
    for tensor in (x, *learned):
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize('learn_scale', [False, True])
def test_gradients_of_gamma_and_beta_pass_the_rounding(learn_scale):
    x = queries().double()
    quantizer = fitted(num_bits=8).double()
    for parameter in (quantizer.gamma, quantizer.beta):
        parameter.requires_grad_(True)
    quantizer.scale.requires_grad_(learn_scale)
    weights = torch.randn_like(x)
    gradients = []
    for context in (transforming, quantizing):
        quantizer.gamma.grad = quantizer.beta.grad = None
        with context(quantizer):
            (quantizer(x) * weights).sum().backward()
        gradients.append((quantizer.gamma.grad, quantizer.beta.grad))
    # Nothing of these queries is clipped: straight through.
    for rounded, smooth in zip(*gradients, strict=True):
        torch.testing.assert_close(rounded, smooth, rtol=1e-4, atol=1e-4)


def test_beta_learns_at_the_pace_of_gamma():
    quantizer = fitted()
    quantizer.beta.data.zero_()
    gamma = float(quantizer.gamma.abs().mean())
    assert quantizer.magnitude_of(quantizer.gamma) == pytest.approx(gamma)
    assert quantizer.magnitude_of(quantizer.beta) == pytest.approx(gamma)
    assert quantizer.magnitude_of(quantizer.scale) == pytest.approx(
        float(quantizer.scale)
    )


def test_contexts_nest_and_restore():
    model = nn.ModuleDict({'query_quantizer': fitted(num_bits=2)})
    quantizer = model['query_quantizer']
    x = queries()
    with quantizing(model):
        rounded = quantizer(x)
        with transforming(model):
            aligned = quantizer(x)
            with float_only(model):
                assert quantizer(x) is x
            with quantizing(model):
                assert torch.equal(quantizer(x), rounded)
            assert torch.equal(quantizer(x), aligned)
            enable(model)
            assert torch.equal(quantizer(x), rounded)
        assert torch.equal(quantizer(x), rounded)
    assert not torch.equal(aligned, rounded)
    assert quantizer(x) is x


@pytest.mark.parametrize('per_head', [False, True])
def test_state_dict_and_copy(per_head):
    quantizer = fitted(per_head=per_head, num_bits=4)
    fresh = make(per_head=per_head, num_bits=4)
    fresh.load_state_dict(quantizer.state_dict())
    assert fresh.observer is None
    x = queries()
    with quantizing(quantizer):
        expected = quantizer(x)
        assert torch.equal(copy.deepcopy(quantizer)(x), expected)
    with quantizing(fresh):
        assert torch.equal(fresh(x), expected)


def test_half_precision_keeps_its_type():
    quantizer = fitted()
    with quantizing(quantizer):
        assert quantizer(queries().bfloat16()).dtype == torch.bfloat16
