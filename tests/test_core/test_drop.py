"""Random drop, alone and fused with a learned grid."""

import pytest
import torch

from taskptq.core.drop import drop_mask, lsq_drop_quantize, random_drop
from taskptq.core.functional import lsq_fake_quantize
from taskptq.core.pieces import PIECE


@pytest.mark.parametrize('zero_point', [-3, 0, 5])
def test_lsq_drop_without_drop_is_lsq(zero_point):
    x = torch.randn(400) * 3
    quant_min, quant_max = -8, 7
    results = []
    for function in (lsq_drop_quantize, lsq_fake_quantize):
        value = x.clone().requires_grad_()
        scale = torch.tensor([0.3], requires_grad=True)
        zero = zero_point
        if function is lsq_fake_quantize:
            zero = torch.tensor([float(zero_point)])
        out = function(
            value,
            scale=scale,
            zero_point=zero,
            quant_min=quant_min,
            quant_max=quant_max,
            grad_factor=0.5,
        )
        (out * x.cos()).sum().backward()
        results.append((out.detach(), value.grad, scale.grad))
    ours, theirs = results
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-5)


def test_lsq_drop_keeps_the_float_value_and_its_gradient():
    x = (torch.randn(20_000) * 3).requires_grad_()
    scale = torch.tensor([0.5], requires_grad=True)
    settings = {'zero_point': 0, 'quant_min': -2, 'quant_max': 1}
    out = lsq_drop_quantize(x, scale=scale, drop_prob=0.5, **settings)
    on_grid = lsq_drop_quantize(x, scale=scale, **settings).detach()
    kept = out == x
    assert 0.48 < kept.float().mean() < 0.52
    assert torch.equal(out[~kept], on_grid[~kept])
    out.sum().backward()
    # Clipped elements pass a gradient only where they were kept.
    clipped = (x < -1.25) | (x > 0.75)
    assert torch.equal(x.grad.bool(), ~clipped | kept)
    full = torch.tensor([0.5], requires_grad=True)
    lsq_drop_quantize(
        x, scale=full, drop_prob=1.0, **settings
    ).sum().backward()
    assert full.grad == 0


@pytest.mark.parametrize('drop_prob', [0.0, 0.25, 0.5, 1.0])
def test_drop_mask_has_the_rate_asked_for(drop_prob):
    mask = drop_mask(torch.empty(100, 333), drop_prob=drop_prob)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(drop_prob, abs=0.01)


@pytest.mark.parametrize('drop_prob', [0.0, 0.25, 0.5, 1.0])
def test_a_mask_has_the_layout_of_its_tensor_and_the_same_draws(drop_prob):
    x = torch.randn(2, 5, 4, 3)
    masks = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        laid_out = x.contiguous(memory_format=layout)
        masks.append(drop_mask(laid_out, drop_prob=drop_prob))
        assert masks[-1].stride() == laid_out.stride()
    assert torch.equal(*masks)
    assert set(masks[0].unique().tolist()) <= {0.0, 1.0}
    assert abs(float(masks[0].mean()) - drop_prob) < 0.2


@pytest.mark.parametrize('layout', ['plain', 'images', 'transposed'])
@pytest.mark.parametrize('size', [7, PIECE + 9])
def test_pieces_change_no_bit_of_values_and_gradients(layout, size):
    x = torch.randn(2, 3, 1, size) * 3
    if layout == 'images':
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == 'transposed':
        x = x.transpose(0, 3)
    factor = torch.randn_like(x)
    settings = {'zero_point': 2, 'quant_min': -4, 'quant_max': 3}
    results = []
    for number in (1, 10**6):
        torch.manual_seed(0)
        value = x.clone().requires_grad_()
        scale = torch.tensor([0.4], requires_grad=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr('taskptq.core.pieces.PIECE', number * PIECE // 8)
            out = lsq_drop_quantize(
                value, scale=scale, drop_prob=0.3, **settings
            )
            (out * factor).sum().backward()
            mixed = random_drop(out.detach(), x, drop_prob=0.5)
        results.append((out.detach(), mixed, value.grad, scale.grad))
        assert out.stride() == torch.empty_like(x).stride()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    # Each element is the float value or on the grid, in its own place.
    out, mixed, *_ = results[0]
    grid = out.div(0.4).round().clamp(-6, 1) * 0.4
    assert ((out == x) | torch.isclose(out, grid)).all()
    assert ((mixed == x) | (mixed == out)).all()
    assert 0.6 < float((mixed == x).float().mean()) < 0.8


def test_a_drop_that_is_learned_through_passes_gradients_where_it_keeps():
    x_hat = torch.zeros(999, requires_grad=True)
    x = torch.ones(999, requires_grad=True)
    out = random_drop(x_hat, x, drop_prob=0.5)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())
    assert torch.equal(x_hat.grad, 1 - out.detach())
