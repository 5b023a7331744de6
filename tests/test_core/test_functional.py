import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskptq.core.functional import (
    affine_to_range,
    dequantize,
    fake_quantize,
    lsq_fake_quantize,
    per_channel,
    quantize,
    range_to_affine,
    round_ste,
    scale_gradient,
)

BITS = range(2, 9)
QUICK = settings(max_examples=50, deadline=None)


def bounds(num_bits, *, signed):
    half = 2 ** (num_bits - 1)
    return (-half, half - 1) if signed else (0, 2 * half - 1)


@st.composite
def grids(draw):
    """A grid from a range, and values in and around that range."""
    signed = draw(st.booleans())
    symmetric = draw(st.booleans())
    channels = draw(st.integers(1, 3))
    quant_min, quant_max = bounds(draw(st.integers(2, 8)), signed=signed)
    seed = draw(st.integers(0, 2**31))
    spread = 10.0 ** draw(st.integers(-6, 6))
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(channels, 40, generator=generator) * spread
    if symmetric and not signed:
        values = values.abs()
    low, high = values.amin(dim=1), values.amax(dim=1)
    scale, zero_point = range_to_affine(
        low,
        high,
        symmetric=symmetric,
        quant_min=quant_min,
        quant_max=quant_max,
    )
    grid = {
        'scale': scale,
        'zero_point': zero_point,
        'quant_min': quant_min,
        'quant_max': quant_max,
        'ch_axis': 0,
    }
    return values, grid, symmetric


@QUICK
@given(grids())
def test_codes_lie_on_the_grid(case):
    values, grid, _ = case
    codes = quantize(values * 3, **grid)
    assert codes.dtype == torch.int32
    assert codes.min() >= grid['quant_min']
    assert codes.max() <= grid['quant_max']
    out = fake_quantize(values * 3, **grid)
    back = quantize(out, **grid)
    again = dequantize(
        back, scale=grid['scale'], zero_point=grid['zero_point'], ch_axis=0
    )
    assert torch.equal(again, out)


@QUICK
@given(grids())
def test_error_is_at_most_half_a_step_inside_the_range(case):
    values, grid, _ = case
    error = (fake_quantize(values, **grid) - values).abs()
    half = grid['scale'][:, None] / 2
    assert (error <= half * (1 + 1e-4)).all()


@QUICK
@given(grids())
def test_clipped_values_take_the_ends(case):
    values, grid, _ = case
    low, high = affine_to_range(
        grid['scale'],
        grid['zero_point'],
        quant_min=grid['quant_min'],
        quant_max=grid['quant_max'],
    )
    far = 1e3 * grid['scale'][:, None].expand_as(values)
    assert torch.equal(
        fake_quantize(far, **grid), high[:, None].expand_as(values)
    )
    assert torch.equal(
        fake_quantize(-far, **grid), low[:, None].expand_as(values)
    )


@QUICK
@given(grids())
def test_zero_is_exact(case):
    values, grid, symmetric = case
    assert (fake_quantize(torch.zeros_like(values), **grid) == 0).all()
    zero_point = grid['zero_point']
    assert (zero_point >= grid['quant_min']).all()
    assert (zero_point <= grid['quant_max']).all()
    if symmetric:
        assert (zero_point == 0).all()


@QUICK
@given(grids())
def test_monotone(case):
    values, grid, _ = case
    ordered = (values * 2).sort(dim=1).values
    assert (quantize(ordered, **grid).diff(dim=1) >= 0).all()
    assert (fake_quantize(ordered, **grid).diff(dim=1) >= 0).all()


@QUICK
@given(grids())
def test_quantizing_twice_is_quantizing_once(case):
    values, grid, _ = case
    once = fake_quantize(values, **grid)
    assert torch.equal(fake_quantize(once, **grid), once)


@QUICK
@given(grids(), st.booleans())
def test_codes_agree_with_torch_but_for_ties(case, channelwise):
    values, grid, _ = case
    values = values * 1.5
    if not channelwise:
        grid = grid | {
            'scale': grid['scale'][:1],
            'zero_point': grid['zero_point'][:1],
            'ch_axis': None,
        }
    codes = quantize(values, **grid)
    mine = dequantize(
        codes,
        scale=grid['scale'],
        zero_point=grid['zero_point'],
        ch_axis=grid['ch_axis'],
    )
    differ = mine != fake_quantize(values, **grid)
    scale = per_channel(grid['scale'], ndim=2, ch_axis=grid['ch_axis'])
    steps = (values.double() / scale.double())[differ]
    # Only values on a tie, to the last bit of float32, may differ.
    distance = (steps - steps.floor() - 0.5).abs()
    assert (distance <= 1e-6 * steps.abs().clamp(min=1)).all()
    gap = (mine - fake_quantize(values, **grid)).abs()
    assert (gap <= scale * 1.001).all()


def test_ties_go_to_even():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    grid = {
        'scale': torch.tensor([1.0]),
        'zero_point': torch.tensor([0], dtype=torch.int32),
        'quant_min': -8,
        'quant_max': 7,
    }
    expected = [-2, -2, 0, 0, 2, 2]
    assert quantize(x, **grid).tolist() == expected
    assert fake_quantize(x, **grid).tolist() == expected
    assert fake_quantize(x.double(), **grid).tolist() == expected


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('function', [fake_quantize, lsq_fake_quantize])
def test_half_precisions_compute_in_float32(dtype, function):
    x = torch.randn(50).to(dtype)
    grid = {
        'scale': torch.tensor([0.1]),
        'zero_point': torch.tensor([3], dtype=torch.int32),
        'quant_min': 0,
        'quant_max': 15,
    }
    out = function(x, **grid)
    assert out.dtype == dtype
    assert torch.equal(out, function(x.float(), **grid).to(dtype))


@pytest.mark.parametrize('num_bits', BITS)
@pytest.mark.parametrize('ch_axis', [None, 0, 1])
def test_straight_through_gradient(num_bits, ch_axis):
    quant_min, quant_max = bounds(num_bits, signed=True)
    channels = 1 if ch_axis is None else 4
    grid = {
        'scale': torch.rand(channels) + 0.1,
        'zero_point': torch.full((channels,), -1, dtype=torch.int32),
        'quant_min': quant_min,
        'quant_max': quant_max,
        'ch_axis': ch_axis,
    }
    x = (torch.randn(4, 4, 5) * 3).requires_grad_()
    fake_quantize(x, **grid).sum().backward()
    scale = per_channel(grid['scale'], ndim=3, ch_axis=ch_axis)
    codes = torch.round(x / scale) - 1
    inside = (codes >= quant_min) & (codes <= quant_max)
    assert torch.equal(x.grad, inside.float())


def gradients(x, scale, zero_point, weight, dtype, **kwargs):
    leaves = [
        t.detach().to(dtype).requires_grad_() for t in (x, scale, zero_point)
    ]
    out = lsq_fake_quantize(
        leaves[0], scale=leaves[1], zero_point=leaves[2], **kwargs
    )
    (out * weight.to(dtype)).sum().backward()
    return out.detach(), [leaf.grad for leaf in leaves]


@pytest.mark.parametrize('num_bits', BITS)
@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('ch_axis', [None, 0, 1])
@pytest.mark.parametrize('grad_factor', [1.0, 0.05])
def test_kernel_gradients_match_the_expression(
    num_bits, signed, ch_axis, grad_factor
):
    quant_min, quant_max = bounds(num_bits, signed=signed)
    channels = 1 if ch_axis is None else 3
    scale = torch.rand(channels) + 0.2
    # Over the whole grid; kernels of torch have erred on negative ones.
    zero_points = torch.linspace(quant_min, quant_max, 5).round()
    for value in zero_points.tolist():
        zero_point = torch.full((channels,), value)
        x = torch.randn(3, 3, 30) * 2**num_bits / 4
        weight = torch.randn_like(x)
        arguments = (x, scale, zero_point, weight)
        kwargs = {
            'quant_min': quant_min,
            'quant_max': quant_max,
            'ch_axis': ch_axis,
            'grad_factor': grad_factor,
        }
        out, found = gradients(*arguments, torch.float32, **kwargs)
        reference, expected = gradients(*arguments, torch.float64, **kwargs)
        torch.testing.assert_close(
            out.double(), reference, rtol=1e-5, atol=1e-5
        )
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one.double(), two, rtol=1e-3, atol=1e-3)


def test_lsq_gradient_has_the_published_values():
    # LSQ, Eq. 3: -v/s + round(v/s) inside, Q_N or Q_P outside; LSQ+, Eq. 5:
    # the offset's is 0 inside, and here -s outside (offset in codes).
    x = torch.tensor([0.3, -0.9, 100.0, -100.0])
    scale = torch.tensor([0.5])
    grads = []
    for i in range(4):
        weight = torch.zeros(4)
        weight[i] = 1
        _, (_, d_scale, d_offset) = gradients(
            x,
            scale,
            torch.tensor([-2.0]),
            weight,
            torch.float32,
            quant_min=-8,
            quant_max=7,
        )
        grads.append((round(d_scale.item(), 5), d_offset.item()))
    # codes are relative to the offset: 7 + 2 = 9, -8 + 2 = -6
    assert grads == [(0.4, 0.0), (-0.2, 0.0), (9.0, -0.5), (-6.0, -0.5)]


def test_gradcheck_where_smooth():
    # Clipped on both sides, where the function is smooth in all of its
    # arguments: (quant_max - zero_point) * scale.
    scale = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    x = torch.tensor(
        [30.0, -30.0, 41.0], dtype=torch.float64, requires_grad=True
    )

    def clipped(x, scale):
        return lsq_fake_quantize(
            x,
            scale=scale,
            zero_point=torch.tensor([1.0]).double(),
            quant_min=0,
            quant_max=15,
        )

    assert torch.autograd.gradcheck(clipped, (x, scale))
    assert torch.autograd.gradcheck(
        lambda x: scale_gradient(x, factor=1.0), (x,)
    )


def test_round_ste_and_scale_gradient():
    x = torch.tensor([0.2, 1.7, -2.5], requires_grad=True)
    out = round_ste(x)
    assert out.tolist() == [0, 2, -2]
    out.sum().backward()
    assert x.grad.tolist() == [1, 1, 1]
    x.grad = None
    out = scale_gradient(x, factor=0.25)
    torch.testing.assert_close(out, x)
    out.sum().backward()
    assert x.grad.tolist() == [0.25] * 3


@pytest.mark.parametrize('num_bits', BITS)
@pytest.mark.parametrize('symmetric', [True, False])
@pytest.mark.parametrize('signed', [True, False])
@pytest.mark.parametrize('channels', [1, 5])
def test_range_table(num_bits, symmetric, signed, channels):
    quant_min, quant_max = bounds(num_bits, signed=signed)
    low, high = -torch.rand(channels), torch.rand(channels) + 0.1
    if not signed:
        low = torch.zeros(channels)
    scale, zero_point = range_to_affine(
        low,
        high,
        symmetric=symmetric,
        quant_min=quant_min,
        quant_max=quant_max,
    )
    assert scale.shape == zero_point.shape == (channels,)
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int32)
    bottom, top = affine_to_range(
        scale, zero_point, quant_min=quant_min, quant_max=quant_max
    )
    slack = scale * 0.5001
    assert (bottom <= low + slack).all()
    assert (top >= high - slack).all()
    # No level is wasted: the grid's span is the range's.
    span = high - low
    if symmetric and signed:
        span = 2 * torch.maximum(-low, high)
    torch.testing.assert_close(scale * (quant_max - quant_min), span)


def test_range_of_dead_positive_and_negative_channels():
    scale, zero_point = range_to_affine(
        torch.tensor([0.0, 2.0, -3.0, 1e-30]),
        torch.tensor([0.0, 3.0, -1.0, 1e-30]),
        symmetric=False,
        quant_min=0,
        quant_max=15,
    )
    assert scale[0] == 1
    torch.testing.assert_close(scale[1:3], torch.tensor([0.2, 0.2]))
    assert zero_point.tolist() == [0, 0, 15, 0]
    assert scale[3] > 0


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('zero_point', [0, 3, 15])
@pytest.mark.parametrize('trained', [False, True])
def test_equals_torchs_kernel_bit_for_bit(zero_point, trained, dtype):
    x = (torch.randn(50_000) * 4).to(dtype).requires_grad_(trained)
    scale = torch.tensor([0.37])
    zero = torch.tensor([zero_point], dtype=torch.int32)
    ours = fake_quantize(
        x, scale=scale, zero_point=zero, quant_min=0, quant_max=15
    )
    theirs = torch.fake_quantize_per_tensor_affine(
        x.float(), scale.squeeze(), zero.squeeze(), 0, 15
    ).to(dtype)
    assert torch.equal(ours, theirs)
    assert ours.requires_grad == trained
    if trained:
        gradient = torch.randn_like(ours)
        mine, torchs = (
            torch.autograd.grad(out, x, gradient)[0] for out in (ours, theirs)
        )
        assert torch.equal(mine, torchs)
        assert 0 < (mine == 0).float().mean() < 1


@pytest.mark.parametrize('ch_axis', [0, 1])
def test_channels_are_bit_for_bit_those_of_torch(ch_axis):
    x = 20 * torch.randn(5, 6, 4, 4)
    x.view(-1)[:3] = torch.tensor([0.0, 1e9, -1e9])
    scale = torch.rand(x.shape[ch_axis]) * 0.3 + 1e-3
    zero_point = torch.randint(0, 256, scale.shape, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(
        x, scale, zero_point, ch_axis, 0, 255
    )
    for gradient in (False, True):
        out = fake_quantize(
            x.clone().requires_grad_(gradient),
            scale=scale,
            zero_point=zero_point,
            quant_min=0,
            quant_max=255,
            ch_axis=ch_axis,
        )
        assert torch.equal(out, expected)
