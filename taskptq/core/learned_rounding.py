"""Learned rounding of weights: soft while training, hard afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from taskptq.core.functional import per_channel
from taskptq.core.pieces import is_dense, pieces, row_pieces

if TYPE_CHECKING:
    from taskptq.core.quantizers import AffineQuantizer, CodedQuantizer

# Stretch of the rectified sigmoid: AdaRound, Nagel et al., ICML 2020, Eq. 23.
ZETA = 1.1
GAMMA = -0.1


class LearnedRounding(nn.Module):
    """Learn whether to round each weight up or down (AdaRound, Eqs. 22-24).

    ``w_hat = s (clamp(floor(w / s) + h(alpha) + z, quant_min, quant_max)
    - z)`` with ``h`` the rectified sigmoid, starting at the float weight.

    With ``straight_through`` the forward pass rounds hard and only the
    gradient is soft, so every rounding is settled at any time.

    Args:
        quantizer: The weight's calibrated affine quantizer.
        weight: The float weight, any shape.
    """

    base: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: AffineQuantizer, weight: Tensor) -> None:
        super().__init__()
        axis = quantizer.spec.ch_axis
        self.quant_min = quantizer.quant_min
        self.quant_max = quantizer.quant_max
        self.soft = True
        self.straight_through = False
        self._h: Tensor | None = None
        self._slope: Tensor | None = None
        scale = per_channel(
            quantizer.scale.detach(), ndim=weight.dim(), ch_axis=axis
        )
        zero_point = per_channel(
            quantizer.zero_point, ndim=weight.dim(), ch_axis=axis
        )
        steps = weight.detach() / scale
        self.register_buffer('scale', scale)
        self.register_buffer('zero_point', zero_point.to(weight.dtype))
        # Only alpha changes: compute the rest once.
        self.register_buffer('base', steps.floor() + self.zero_point)
        rest = steps - steps.floor()
        self.alpha = nn.Parameter(inverse_rectified_sigmoid(rest))

    def forward(self) -> Tensor:
        """Return the weight: soft while training, else on the grid."""
        if not self.soft:
            return (self.codes() - self.zero_point) * self.scale
        with torch.no_grad():
            h, slope = rectified_sigmoid_and_slope(self.alpha)
            up = (self.alpha >= 0).to(h.dtype) if self.straight_through else h
            weight, factor = self._soft_weight(up, slope)
        self._h, self._slope = h, slope
        return soft_weight(self.alpha, weight, factor)

    def _soft_weight(self, up: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weight and its slope, given those of the rounding."""
        weight, factor = torch.empty_like(up), torch.empty_like(up)
        for share, steep, base, scale, zero, out, passes in row_pieces(
            up, slope, self.base, self.scale, self.zero_point, weight, factor
        ):
            codes = torch.add(share, base, out=passes)
            torch.clamp(codes, self.quant_min, self.quant_max, out=out)
            torch.eq(out, codes, out=passes)
            passes.mul_(steep).mul_(scale)
            out.sub_(zero).mul_(scale)
        return weight, factor

    @torch.no_grad()
    def add_penalty_gradient(self, *, weight: Tensor, beta: int) -> None:
        """Add the gradient of ``weight * sum(1 - |2 h - 1|^beta)``.

        Reuses results of the last ``forward`` and avoids the power function,
        which needs an even ``beta``; much cheaper than autograd.

        Args:
            weight: One element: the penalty weight divided by the number of
                weights.
            beta: Even exponent.

        Raises:
            ValueError: If ``beta`` is odd or below 2.
        """
        if beta < 2 or beta % 2:
            raise ValueError(f'beta={beta} must be even, and at least 2')
        if self._h is None or self._slope is None or self.alpha.grad is None:
            raise RuntimeError(
                'call forward() and backward() before add_penalty_gradient()'
            )
        factor = -2 * beta * weight
        for h, slope, gradient in row_pieces(
            self._h, self._slope, self.alpha.grad
        ):
            u = h.mul(2).sub_(1)
            # d/dh (1 - |u|^beta) = -2 beta u^(beta - 1), odd in u
            gradient.addcmul_(odd_power(u, beta - 1).mul_(slope), factor)

    @torch.no_grad()
    def add_code_gradient(self, gradient: Tensor) -> None:
        """Add a gradient by codes to that of ``alpha``.

        Call ``forward`` and ``backward`` before.

        Args:
            gradient: Per step of the grid, shaped like the weight.
        """
        if self._slope is None or self.alpha.grad is None:
            raise RuntimeError(
                'call forward() and backward() before add_code_gradient()'
            )
        self.alpha.grad.addcmul_(gradient, self._slope)

    @torch.no_grad()
    def position(self) -> Tensor:
        """Return where the weight is among the codes, real."""
        return self.base + rectified_sigmoid(self.alpha)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the hard-rounded codes, int32."""
        up = (self.alpha >= 0).to(self.base.dtype)
        codes = (self.base + up).clamp(self.quant_min, self.quant_max)
        return codes.to(torch.int32)

    @torch.no_grad()
    def lean_towards(self, codes: Tensor, *, share: float = 0.9) -> None:
        """Start from earlier codes, which training may still change.

        Args:
            codes: Integer codes, shaped like the weight.
            share: h where they round up, in (0.5, 1); 1 - share elsewhere.
        """
        codes = codes.to(self.base.dtype)
        # A solved code may be further off: it and its neighbour on the side
        # of the float weight are what remains to choose from.
        lowest = self.base.clamp(self.quant_min, self.quant_max)
        highest = (self.base + 1).clamp(self.quant_min, self.quant_max)
        self.base = torch.where(codes < lowest, codes, self.base)
        self.base = torch.where(codes > highest, codes - 1, self.base)
        up = codes > self.base
        h = torch.where(up, share, 1 - share).to(self.alpha.dtype)
        self.alpha.copy_(inverse_rectified_sigmoid(h))

    def settle(self, quantizer: CodedQuantizer) -> None:
        """Give the quantizer what was learned besides codes: nothing here."""

    def regularization(self, beta: float) -> Tensor:
        """Return mean(1 - |2 h - 1|^beta) over weights (AdaRound, Eq. 24)."""
        return rounding_penalty(self.alpha, beta)

    @torch.no_grad()
    def settled(self) -> Tensor:
        """Return how many roundings are settled: |h - 0.5| > 0.49.

        Straight-through roundings always are.
        """
        if self.straight_through:
            return torch.tensor(self.alpha.numel(), device=self.alpha.device)
        h = rectified_sigmoid(self.alpha)
        return ((h - 0.5).abs() > 0.49).sum()


def soft_weight(alpha: Tensor, weight: Tensor, factor: Tensor) -> Tensor:
    """Return ``weight``, whose gradient for ``alpha`` is ``factor``."""
    out: Tensor = _SoftWeight.apply(  # type: ignore[no-untyped-call]
        alpha, weight, factor
    )
    return out


class _SoftWeight(torch.autograd.Function):
    """Return the weight; its gradient for alpha is ``factor``."""

    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, weight: Tensor, factor: Tensor
    ) -> Tensor:
        del alpha
        ctx.save_for_backward(factor)
        return weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None, None


def rectified_sigmoid_and_slope(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Return h(alpha) and dh / dalpha in few passes over memory."""
    h, slope = torch.empty_like(alpha), torch.empty_like(alpha)
    value = alpha if is_dense(alpha) else torch.empty_like(alpha).copy_(alpha)
    for part, clipped, steep in pieces(value, h, slope):
        sigmoid = torch.sigmoid(part)
        torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1, out=steep)
        stretched = sigmoid.mul_(ZETA - GAMMA).add_(GAMMA)
        torch.clamp(stretched, 0, 1, out=clipped)
        passes = torch.eq(clipped, stretched, out=stretched)
        steep.mul_(ZETA - GAMMA).mul_(passes)
    return h, slope


def odd_power(x: Tensor, exponent: int) -> Tensor:
    """Return ``x ** exponent`` by squaring, for an odd positive exponent.

    >>> odd_power(torch.tensor([-2.0, 0.5]), 3)
    tensor([-8.0000,  0.1250])
    """
    result, square = x.clone(), x * x
    rest = (exponent - 1) // 2
    while rest:
        if rest & 1:
            result.mul_(square)
        rest >>= 1
        if rest:
            square.mul_(square)
    return result


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """Return clip(sigmoid(alpha) (zeta - gamma) + gamma, 0, 1).

    >>> rectified_sigmoid(torch.tensor([-9.0, 0.0, 9.0]))
    tensor([0.0000, 0.5000, 1.0000])
    """
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """Return the alpha at which the rectified sigmoid is ``h`` in [0, 1]."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


def rounding_penalty(alpha: Tensor, beta: float) -> Tensor:
    """Return mean(1 - |2 h(alpha) - 1|^beta); 0 when all h are 0 or 1."""
    h = rectified_sigmoid(alpha)
    return 1 - (2 * h - 1).abs().pow(beta).mean()
