"""QDrop's random drop, alone and in one step with a learned grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from taskptq.core.functional import reciprocal
from taskptq.core.pieces import is_dense, pieces

__all__ = ['drop_mask', 'lsq_drop_quantize', 'random_drop']

# Random bits of each decision.
LEVELS = 256


def lsq_drop_quantize(
    x: Tensor,
    *,
    scale: Tensor,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
    drop_prob: float = 0.0,
) -> Tensor:
    """Fake-quantize with a learned scale and QDrop's random drop in one step.

    The inner loop of reconstruction: values and gradients equal those of
    ``lsq_fake_quantize`` followed by :func:`random_drop`, in a fraction of
    the time on a CPU.

    Args:
        x: Any shape, float32.
        scale: One element, positive.
        zero_point: Fixed.
        quant_min: Lowest code.
        quant_max: Highest code.
        grad_factor: Multiplies the gradient of the scale.
        drop_prob: Probability that an element keeps its float value.

    Returns:
        Shape of ``x``.
    """
    out: Tensor = _LSQDrop.apply(  # type: ignore[no-untyped-call]
        x,
        scale,
        quant_min - zero_point,
        quant_max - zero_point,
        grad_factor,
        _octets(x) if drop_prob > 0 else None,
        _below(drop_prob),
    )
    return out


class _LSQDrop(torch.autograd.Function):
    """Saves two floats per element instead of a graph.

    Masks are floats: torch's CPU kernels run several times as fast on them
    as on bools.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        lowest: int,
        highest: int,
        grad_factor: float,
        octets: Tensor | None,
        below: int,
    ) -> Tensor:
        x_hat, passes, slope = (torch.empty_like(x) for _ in range(3))
        value = x if is_dense(x) else torch.empty_like(x).copy_(x)
        laid_out = [value, x_hat, passes, slope]
        laid_out += [] if octets is None else [octets]
        inverse, size = reciprocal(scale), float(scale)
        keep: Tensor | None = None
        for part, codes, inside, steps, *drawn in pieces(*laid_out):
            torch.mul(part, inverse, out=steps)
            rounded = torch.round(steps, out=inside)
            torch.clamp(rounded, lowest, highest, out=codes)
            torch.eq(codes, rounded, out=inside)
            # d x_hat / d scale: codes - x / scale inside the range, else
            # codes
            torch.addcmul(codes, steps, inside, value=-1, out=steps)
            codes.mul_(size)
            if drawn:
                keep = torch.empty_like(part) if keep is None else keep
                kept = keep[: part.numel()].copy_(drawn[0]).lt_(below)
                torch.lerp(codes, part, kept, out=codes)
                torch.addcmul(steps, steps, kept, value=-1, out=steps)
                torch.maximum(inside, kept, out=inside)
        ctx.save_for_backward(passes, slope)
        ctx.grad_factor = grad_factor
        ctx.shape = scale.shape
        return x_hat

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        gradient = gradients[0]
        passes, slope = ctx.saved_tensors
        grad_x, by_scale = _products(
            gradient, passes if ctx.needs_input_grad[0] else None, slope
        )
        grad_scale = by_scale.sum() * ctx.grad_factor
        return grad_x, grad_scale.reshape(ctx.shape), *[None] * 5


def _products(
    gradient: Tensor, passes: Tensor | None, slope: Tensor
) -> tuple[Tensor | None, Tensor]:
    """Return the gradient times two masks, the first of which may lack."""
    if gradient.stride() != slope.stride():
        grad_x = None if passes is None else gradient * passes
        return grad_x, gradient * slope
    if passes is None:
        return None, gradient * slope
    grad_x, by_scale = torch.empty_like(slope), torch.empty_like(slope)
    for part, inside, steps, one, other in pieces(
        gradient, passes, slope, grad_x, by_scale
    ):
        torch.mul(part, inside, out=one)
        torch.mul(part, steps, out=other)
    return grad_x, by_scale


def _octets(x: Tensor) -> Tensor:
    """Draw one octet per element, laid out as ``x``, from torch's generator.

    The draws of an element do not depend on the layout.
    """
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
    words.random_(torch.iinfo(torch.int64).min, None)
    octets = words.view(torch.uint8)[: x.numel()].view(x.shape)
    if x.is_contiguous():
        return octets
    return torch.empty_like(x, dtype=torch.uint8).copy_(octets)


def _below(drop_prob: float) -> int:
    """Return how many of the values of an octet mean that x is kept."""
    return round(drop_prob * LEVELS)


def drop_mask(x: Tensor, *, drop_prob: float) -> Tensor:
    """Return 1.0 with probability ``drop_prob``, else 0.0, laid out as ``x``.

    Uses 8 random bits per element, so the probability is rounded to a
    multiple of 1/256. Draws from torch's global generator.
    """
    # Laid out like x: with one operand of another layout, torch's CPU kernels
    # run several times as long.
    mask, below = torch.empty_like(x), _below(drop_prob)
    for part, octets in pieces(mask, _octets(x)):
        part.copy_(octets).lt_(below)
    return mask


def random_drop(x_hat: Tensor, x: Tensor, *, drop_prob: float) -> Tensor:
    """Keep the float value of each element with probability ``drop_prob``.

    QDrop, Wei et al., ICLR 2022, Eq. 7. Draws from torch's global generator.

    Args:
        x_hat: Quantized values.
        x: Float values, same shape.
        drop_prob: Probability of the float value, in [0, 1].
    """
    # lerp is exact at weights 0 and 1, and faster on a CPU than where
    learned = torch.is_grad_enabled() and (
        x_hat.requires_grad or x.requires_grad
    )
    alike = x_hat.stride() == x.stride() and is_dense(x)
    if learned or not alike or x.dtype != x_hat.dtype:
        return torch.lerp(x_hat, x, drop_mask(x, drop_prob=drop_prob))
    out, below = torch.empty_like(x), _below(drop_prob)
    for part, values, other, octets in pieces(out, x_hat, x, _octets(x)):
        part.copy_(octets).lt_(below)
        torch.lerp(values, other, part, out=part)
    return out
