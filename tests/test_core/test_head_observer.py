import pytest
import torch

from taskptq.core import (
    AffineQuantizer,
    KLObserver,
    LSQQuantizer,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MSEObserver,
    PercentileObserver,
    QuantizerConfig,
    QuantSpec,
    observing,
    quantizing,
)
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer

HEADS = 3
OBSERVERS = [
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PercentileObserver,
    MSEObserver,
    KLObserver,
]


def batches(*, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([0.1, 1.0, 7.0]).view(1, HEADS, 1, 1)
    return [
        torch.randn(2, HEADS, 40, 8, generator=generator) * size
        for _ in range(3)
    ]


def build(observer, *, num_heads=HEADS, quantizer=AffineQuantizer, **kwargs):
    return QuantizerConfig(
        spec=QuantSpec(num_bits=4, **kwargs),
        quantizer=quantizer,
        observer=observer,
        per_channel=num_heads is not None,
    ).build(num_heads=num_heads)


def calibrated(quantizer, tensors):
    with observing(quantizer):
        for x in tensors:
            quantizer(x)
    assert quantizer.calibrate()
    return quantizer


@pytest.mark.parametrize('observer', OBSERVERS)
@pytest.mark.parametrize('symmetric', [False, True])
def test_each_head_is_calibrated_on_all_batches(observer, symmetric):
    data = batches()
    quantizer = calibrated(build(observer, symmetric=symmetric), data)
    assert quantizer.scale.shape == quantizer.zero_point.shape == (HEADS,)
    for head in range(HEADS):
        alone = calibrated(
            build(observer, num_heads=None, symmetric=symmetric),
            [x[:, head] for x in data],
        )
        assert torch.equal(alone.scale, quantizer.scale[head : head + 1])
        assert torch.equal(
            alone.zero_point, quantizer.zero_point[head : head + 1]
        )
        with quantizing(alone), quantizing(quantizer):
            torch.testing.assert_close(
                quantizer(data[0])[:, head], alone(data[0][:, head])
            )


def test_heads_beat_one_grid_for_all():
    x = torch.cat(batches())
    errors = []
    for num_heads in (None, HEADS):
        quantizer = calibrated(build(MSEObserver, num_heads=num_heads), [x])
        with quantizing(quantizer):
            error = (quantizer(x) - x).square().mean((0, 2, 3))
        errors.append(error / x.square().mean((0, 2, 3)))
    assert errors[0][0] > 0.9
    assert errors[1].max() < 0.05


@pytest.mark.parametrize('observer', [MinMaxObserver, MSEObserver])
def test_one_negative_head_makes_all_signed(observer):
    data = [x.abs() for x in batches()]
    unsigned = calibrated(build(observer, symmetric=True), data)
    assert unsigned.quant_min == 0
    for x in data:
        x[:, 1].neg_()
    signed = calibrated(build(observer, symmetric=True), data)
    assert (signed.quant_min, signed.quant_max) == (-8, 7)
    with quantizing(signed):
        x_hat = signed(data[0])
    for head in range(HEADS):
        error = (x_hat - data[0])[:, head].square().mean()
        assert error < 0.05 * data[0][:, head].square().mean()


def test_power_grid_per_head():
    softmax = [x.softmax(-1) for x in batches()]
    quantizer = calibrated(
        build(MinMaxObserver, quantizer=PowerOfTwoQuantizer), softmax
    )
    expected = torch.cat(softmax).amax((0, 2, 3))
    torch.testing.assert_close(quantizer.scale, expected)
    with quantizing(quantizer):
        assert quantizer(softmax[0]).shape == softmax[0].shape


def test_gradients_of_each_head_equal_the_reference():
    """Also where signed grids have negative zero points."""
    x = torch.cat(batches())
    x[:, 0] += 0.05
    x[:, 2] -= 4
    quantizer = calibrated(build(MSEObserver, quantizer=LSQQuantizer), [x])
    quantizer.zero_point[0] = -3
    weights = torch.randn_like(x)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        quantizer = quantizer.to(dtype)
        quantizer.scale.requires_grad_(True)
        quantizer.scale.grad = None
        given = x.clone().to(dtype).requires_grad_()
        with quantizing(quantizer):
            (quantizer(given) * weights).sum().backward()
        gradients.append((quantizer.scale.grad.double(), given.grad.double()))
    (scale, values), (expected_scale, expected_values) = gradients
    torch.testing.assert_close(scale, expected_scale, rtol=1e-3, atol=1e-3)
    assert ((values - expected_values).abs() > 1e-4).float().mean() < 1e-3


@pytest.mark.parametrize('shape', [(2, 5, 4, 8), (HEADS, 4, 8)])
def test_other_heads_are_refused(shape):
    quantizer = build(MinMaxObserver)
    with observing(quantizer), pytest.raises(ValueError, match='per_head'):
        quantizer(torch.randn(shape))


def test_a_state_needs_no_observers():
    quantizer = calibrated(build(MSEObserver), batches())
    fresh = build(MSEObserver)
    assert any('heads' in key for key in fresh.state_dict())
    fresh.load_state_dict(quantizer.state_dict())
    assert fresh.observer is None
    assert torch.equal(fresh.scale, quantizer.scale)


def test_ranks_combine_the_heads():
    observer = build(MSEObserver).observer
    assert len(observer.parts()) == HEADS
    assert list(observer.parts()[0].parts()) == [observer.parts()[0]]
