"""Pure functions of affine quantization.

``q = clamp(round(x / scale) + zero_point, quant_min, quant_max)``, ties to
even as in ONNX QuantizeLinear; ``x_hat = (q - zero_point) * scale``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from taskptq.core.pieces import is_dense, pieces

# A scale below this would overflow x / scale for ordinary activations.
MIN_SCALE = 1e-12


def per_channel(values: Tensor, *, ndim: int, ch_axis: int | None) -> Tensor:
    """Reshape scales so that they broadcast against a tensor.

    >>> per_channel(torch.ones(8), ndim=4, ch_axis=1).shape
    torch.Size([1, 8, 1, 1])

    Args:
        values: Shape (C,), or one element.
        ndim: Dimensions of the tensor to broadcast against.
        ch_axis: Channel axis, None for per tensor.

    Returns:
        Shape (1, ..., C, ..., 1), or () per tensor.
    """
    if ch_axis is None:
        return values.reshape(())
    shape = [1] * ndim
    shape[ch_axis] = -1
    return values.reshape(shape)


def quantize(
    x: Tensor,
    *,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    ch_axis: int | None = None,
) -> Tensor:
    """Return the integer codes of ``x`` as int32, same shape.

    >>> quantize(torch.tensor([-1.0, 0.5, 9.0]), scale=torch.tensor(0.5),
    ...          zero_point=torch.tensor(2), quant_min=0, quant_max=15)
    tensor([ 0,  3, 15], dtype=torch.int32)
    """
    scale = per_channel(scale, ndim=x.dim(), ch_axis=ch_axis)
    zero_point = per_channel(zero_point, ndim=x.dim(), ch_axis=ch_axis)
    codes = torch.round(x / scale) + zero_point
    return codes.clamp(quant_min, quant_max).to(torch.int32)


def dequantize(
    codes: Tensor,
    *,
    scale: Tensor,
    zero_point: Tensor,
    ch_axis: int | None = None,
) -> Tensor:
    """Return ``(codes - zero_point) * scale`` in the scale's dtype.

    >>> dequantize(torch.tensor([0, 3, 15]), scale=torch.tensor(0.5),
    ...            zero_point=torch.tensor(2))
    tensor([-1.0000,  0.5000,  6.5000])
    """
    scale = per_channel(scale, ndim=codes.dim(), ch_axis=ch_axis)
    zero_point = per_channel(zero_point, ndim=codes.dim(), ch_axis=ch_axis)
    return (codes - zero_point).to(scale.dtype) * scale


def fake_quantize(
    x: Tensor,
    *,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    ch_axis: int | None = None,
) -> Tensor:
    """Quantize and dequantize; gradient 1 inside the range, 0 outside (STE).

    Runs torch's fused kernels. They multiply by 1 / scale, so an exact tie
    may round to the code next to that of :func:`quantize`.

    >>> x = torch.tensor([-1.0, 0.3, 9.0], requires_grad=True)
    >>> x_hat = fake_quantize(x, scale=torch.tensor(0.5),
    ...                       zero_point=torch.tensor(2), quant_min=0,
    ...                       quant_max=15)
    >>> x_hat.detach()
    tensor([-1.0000,  0.5000,  6.5000])
    >>> x_hat.sum().backward()
    >>> x.grad
    tensor([1., 1., 0.])

    Args:
        x: Any shape, floating; half precision is computed in float32.
        scale: (C,) or one element, positive, float32.
        zero_point: Like ``scale``, int32.
        quant_min: Lowest code.
        quant_max: Highest code.
        ch_axis: Channel axis, None for per tensor.

    Returns:
        Shape and dtype of ``x``, on the grid.
    """
    if x.dtype == torch.float64:
        return _fake_quantize_expression(
            x,
            scale=scale,
            zero_point=zero_point,
            quant_min=quant_min,
            quant_max=quant_max,
            ch_axis=ch_axis,
        )
    value = x if x.dtype == torch.float32 else x.float()
    if ch_axis is None and not x.is_cuda:
        # Bit for bit what torch's kernel returns, four times as fast on a CPU
        shift = int(zero_point)
        lowest, highest = quant_min - shift, quant_max - shift
        if torch.is_grad_enabled() and x.requires_grad:
            out: Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
                value, scale, lowest, highest
            )
        else:
            out = _on_grid(value, scale=scale, lowest=lowest, highest=highest)
    elif ch_axis is None:
        out = torch.fake_quantize_per_tensor_affine(
            value,
            scale.reshape(()),
            zero_point.reshape(()),
            quant_min,
            quant_max,
        )
    elif value.is_cuda or (torch.is_grad_enabled() and x.requires_grad):
        out = torch.fake_quantize_per_channel_affine(
            value, scale, zero_point, ch_axis, quant_min, quant_max
        )
    else:
        # As above, on finite values
        steps = per_channel(scale.detach(), ndim=x.dim(), ch_axis=ch_axis)
        offset = per_channel(zero_point, ndim=x.dim(), ch_axis=ch_axis)
        out = value * steps.reciprocal()
        out.round_().clamp_(quant_min - offset, quant_max - offset)
        out.mul_(steps)
    return out if out.dtype == x.dtype else out.to(x.dtype)


def _on_grid(x: Tensor, *, scale: Tensor, lowest: int, highest: int) -> Tensor:
    out = torch.empty_like(x)
    value = x if is_dense(x) else out.copy_(x)
    inverse, size = reciprocal(scale), float(scale)
    for part, codes in pieces(value, out):
        torch.mul(part, inverse, out=codes)
        codes.round_().clamp_(lowest, highest).mul_(size)
    return out


class _StraightThrough(torch.autograd.Function):
    """Round on a fixed grid; the mask holds floats, as in drop.py."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, lowest: int, highest: int
    ) -> Tensor:
        codes, passes = torch.empty_like(x), torch.empty_like(x)
        value = x if is_dense(x) else torch.empty_like(x).copy_(x)
        inverse, size = reciprocal(scale), float(scale)
        for part, out, rounded in pieces(value, codes, passes):
            torch.mul(part, inverse, out=rounded).round_()
            torch.clamp(rounded, lowest, highest, out=out)
            torch.eq(out, rounded, out=rounded)
            out.mul_(size)
        ctx.save_for_backward(passes)
        return codes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (passes,) = ctx.saved_tensors
        return gradients[0] * passes, None, None, None


def round_ste(x: Tensor) -> Tensor:
    """Round to the nearest even integer; the gradient passes unchanged.

    Bengio et al., 'Estimating or propagating gradients', 2013.
    """
    return (torch.round(x) - x).detach() + x


def _fake_quantize_expression(
    x: Tensor,
    *,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    ch_axis: int | None,
) -> Tensor:
    """Differentiable reference: gradients for x, scale and zero point."""
    scale = per_channel(scale, ndim=x.dim(), ch_axis=ch_axis)
    zero_point = per_channel(zero_point, ndim=x.dim(), ch_axis=ch_axis)
    if zero_point.is_floating_point():
        zero_point = round_ste(zero_point)
    codes = round_ste(x / scale) + zero_point
    return (codes.clamp(quant_min, quant_max) - zero_point) * scale


def lsq_fake_quantize(
    x: Tensor,
    *,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    ch_axis: int | None = None,
    grad_factor: float = 1.0,
) -> Tensor:
    """Fake-quantize with gradients for the scale and the zero point.

    LSQ, Esser et al., ICLR 2020, Eq. 3 (scale); LSQ+, Bhalgat et al.,
    CVPRW 2020, Eq. 5 (offset). float32 runs torch's fused learnable kernels,
    other dtypes the plain expression.

    Args:
        x: Any shape, floating.
        scale: (C,) or (1,), positive.
        zero_point: Like ``scale``, floating, rounded inside.
        quant_min: Lowest code.
        quant_max: Highest code.
        ch_axis: Channel axis, None for per tensor.
        grad_factor: Multiplies the gradients of scale and zero point.

    Returns:
        Shape and dtype of ``x``, on the grid.
    """
    # The fused kernels leave gradients unset for no values.
    if x.dtype == torch.float64 or x.numel() == 0:
        if grad_factor != 1.0:
            scale = scale_gradient(scale, factor=grad_factor)
            zero_point = scale_gradient(zero_point, factor=grad_factor)
        return _fake_quantize_expression(
            x,
            scale=scale,
            zero_point=zero_point,
            quant_min=quant_min,
            quant_max=quant_max,
            ch_axis=ch_axis,
        ).to(x.dtype)
    value = x if x.dtype == torch.float32 else x.float()
    zero_point = zero_point.to(value.dtype)
    if ch_axis is None:
        # Shift the codes to start at 0: torch's backward truncates
        # zero point + 0.5, which is off by one where that is negative.
        out: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            value,
            scale.reshape(1),
            zero_point.reshape(1) - quant_min,
            0,
            quant_max - quant_min,
            grad_factor,
        )
    else:
        out = torch._fake_quantize_learnable_per_channel_affine(
            value,
            scale,
            zero_point,
            ch_axis,
            quant_min,
            quant_max,
            grad_factor,
        )
    return out if out.dtype == x.dtype else out.to(x.dtype)


def reciprocal(scale: Tensor) -> float:
    """Return 1 / scale of a single scale, rounded to float32."""
    return float(scale.detach().reshape(()).reciprocal())


def scale_gradient(x: Tensor, *, factor: float) -> Tensor:
    """Return ``x`` with its gradient multiplied by ``factor``."""
    return (x - x * factor).detach() + x * factor


def range_to_affine(
    min_val: Tensor,
    max_val: Tensor,
    *,
    symmetric: bool,
    quant_min: int,
    quant_max: int,
) -> tuple[Tensor, Tensor]:
    """Turn an observed range into (scale, zero_point).

    The range is widened to contain zero, which is then represented exactly.
    A channel that is zero throughout gets scale 1.

    >>> range_to_affine(torch.tensor([-1.0]), torch.tensor([6.5]),
    ...                 symmetric=False, quant_min=0, quant_max=15)
    (tensor([0.5000]), tensor([2], dtype=torch.int32))
    >>> range_to_affine(torch.tensor([-1.0]), torch.tensor([3.75]),
    ...                 symmetric=True, quant_min=-8, quant_max=7)
    (tensor([0.5000]), tensor([0], dtype=torch.int32))

    Args:
        min_val: (C,) or (1,), lowest value to represent.
        max_val: Like ``min_val``, highest.
        symmetric: Put the zero point at 0.
        quant_min: Lowest code.
        quant_max: Highest code.

    Returns:
        scale (float32) and zero_point (int32), shaped like ``min_val``.
    """
    min_val = min_val.float().clamp(max=0.0)
    max_val = max_val.float().clamp(min=0.0)
    steps = quant_max - quant_min
    if symmetric:
        largest = torch.maximum(-min_val, max_val)
        # A signed grid reaches from -(steps + 1) / 2 to (steps - 1) / 2: this
        # scale keeps both ends within half a step.
        scale = largest / (steps / 2 if quant_min < 0 else steps)
        zero_point = torch.zeros_like(scale)
    else:
        scale = (max_val - min_val) / steps
        zero_point = torch.zeros_like(scale)
    dead = scale == 0
    scale = scale.clamp(min=MIN_SCALE).masked_fill(dead, 1.0)
    if not symmetric:
        zero_point = quant_min - torch.round(min_val / scale)
        zero_point = zero_point.clamp(quant_min, quant_max)
    return scale, zero_point.to(torch.int32)


def affine_to_range(
    scale: Tensor, zero_point: Tensor, *, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest values that the grid represents.

    >>> affine_to_range(torch.tensor(0.5), torch.tensor(2), quant_min=0,
    ...                 quant_max=15)
    (tensor(-1.), tensor(6.5000))
    """
    return (quant_min - zero_point) * scale, (quant_max - zero_point) * scale
