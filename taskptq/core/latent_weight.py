"""A weight that trains on its grid: codes and scale, rounded hard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from taskptq.core.learned_rounding import LearnedRounding

if TYPE_CHECKING:
    from taskptq.core.quantizers import AffineQuantizer, CodedQuantizer

# Smallest scale relative to the one that training started from.
LEAST_SHARE = 0.1


class LatentWeight(LearnedRounding):
    """Train any code of a weight, and its scale, through hard rounding.

    ``w_hat = s clamp(round(v), quant_min - z, quant_max - z)`` with the
    latent weight v in steps. Its gradient passes the rounding unchanged
    (Bengio et al., 'Estimating or propagating gradients', 2013), that of the
    scale is the sum over a channel of the code times the gradient of w_hat
    (as in LSQ, Esser et al., ICLR 2020, but v keeps its place on the grid
    when s moves). Unlike a learned rounding, a code may move further than to
    its neighbour, and every weight is on the grid at any time.

    Args:
        quantizer: The weight's calibrated affine quantizer.
        weight: The float weight, any shape.
    """

    def __init__(self, quantizer: AffineQuantizer, weight: Tensor) -> None:
        super().__init__(quantizer, weight)
        self.straight_through = True
        self.lowest = self.quant_min - self.zero_point
        self.highest = self.quant_max - self.zero_point
        start = self.scale.detach()
        self.least = start * LEAST_SHARE
        del self.scale
        self.scale = nn.Parameter(start.clone(), requires_grad=False)
        steps = (weight.detach() / start).round()
        self._start(steps.clamp(self.lowest, self.highest))

    def _start(self, steps: Tensor) -> None:
        # Convolutions run about twice as fast on a CPU with channels last.
        if steps.dim() == 4:
            steps = steps.contiguous(memory_format=torch.channels_last)
        self.alpha = nn.Parameter(steps)

    def forward(self) -> Tensor:
        """Return the weight on its grid."""
        out: Tensor = _OnGrid.apply(  # type: ignore[no-untyped-call]
            self.alpha,
            torch.maximum(self.scale, self.least),
            self.lowest,
            self.highest,
        )
        return out

    @torch.no_grad()
    def add_code_gradient(self, gradient: Tensor) -> None:
        """Add a gradient by codes to that of ``alpha``.

        Args:
            gradient: Per step of the grid, shaped like the weight.
        """
        if self.alpha.grad is None:
            raise RuntimeError('call backward() before add_code_gradient()')
        self.alpha.grad.add_(gradient)

    @torch.no_grad()
    def position(self) -> Tensor:
        """Return where the weight is among the codes, real."""
        return self.alpha.detach() + self.zero_point

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the codes, int32."""
        codes = self.alpha.round() + self.zero_point
        codes = codes.clamp(self.quant_min, self.quant_max)
        return codes.to(torch.int32).contiguous()

    @torch.no_grad()
    def lean_towards(self, codes: Tensor, *, share: float = 0.9) -> None:
        """Start from earlier codes.

        Args:
            codes: Integer codes, shaped like the weight.
            share: Not used: a latent weight starts in the middle of its
                code.
        """
        del share
        self._start(codes.to(self.zero_point.dtype) - self.zero_point)

    @torch.no_grad()
    def settle(self, quantizer: CodedQuantizer) -> None:
        """Give the quantizer the scale that was learned."""
        scale = torch.maximum(self.scale, self.least)
        affine = cast('AffineQuantizer', quantizer)
        affine.set_scale(scale.detach().reshape(-1))


class _OnGrid(torch.autograd.Function):
    """Round latent weights; straight through for them, LSQ for the scale."""

    @staticmethod
    def forward(
        ctx: Any, latent: Tensor, scale: Tensor, lowest: Tensor, high: Tensor
    ) -> Tensor:
        rounded = latent.round()
        codes = rounded.clamp(lowest, high)
        ctx.save_for_backward(torch.eq(codes, rounded), codes, scale)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        passes, codes, scale = ctx.saved_tensors
        (gradient,) = gradients
        return (
            gradient * scale * passes,
            (gradient * codes).sum_to_size(scale.shape),
            None,
            None,
        )
