"""Logarithmic grid with base 2^(1/tau), for softmax outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core.observers import Observer
from taskptq.core.quantizers import Quantizer
from taskptq.core.settings import Choice
from taskptq.core.spec import QuantSpec
from taskptq.methods.ptq4sam.granularity import (
    TAUS,
    TINY,
    UNIFORM,
    Granularity,
    grid_codes,
    grid_values,
)
from taskptq.methods.ptq4sam.output_error import AttentionOutputObserver
from taskptq.registry import QUANTIZERS

# A learned scale stays above this share of the calibrated one.
MIN_GAIN = 1e-3


@QUANTIZERS.register_module()
class PowerOfTwoQuantizer(Quantizer):
    """Quantize (0, 1] on ``scale * 2^(-q / tau)``; small values become 0.

    PTQ4SAM, Lv et al., CVPR 2024, section 3.3 (adaptive granularity):
    ``q = round(-tau log2(x / scale))``, codes of 2^b and above map to 0. The
    last code, 2^b - 1, is an ordinary level.

    :class:`AttentionOutputObserver` searches tau and scale; another observer
    sets the scale to the maximum and keeps tau. With one of each per head,
    (H,), tensors must be (..., H, N, M).

    Reconstruction learns ``gain``, a factor of each scale, so that its steps
    are relative to each head's scale. ``settle`` folds it into the scale.

    Args:
        spec: Only ``num_bits`` is read; the grid is unsigned.
        observer: Statistics.
        tau: 1, 2 or 4; larger values spend more levels near the maximum. 0
            is a uniform grid with as many levels (see ``granularity.py``).

    Attributes:
        granularity: Result of the search, None without one.

    Raises:
        ValueError: If ``tau`` is not one of these.
    """

    points = ('softmax',)
    takes_head_grids = True
    scale: Tensor
    tau: Tensor

    def __init__(
        self,
        spec: QuantSpec,
        *,
        observer: Observer | None = None,
        tau: int = 1,
    ) -> None:
        super().__init__(spec, observer=observer)
        self.granularity: Granularity | None = None
        self.gain = nn.Parameter(torch.empty(0), requires_grad=False)
        self.register_buffer('scale', torch.empty(0))
        self.register_buffer('tau', torch.empty(0, dtype=torch.int32))
        self.set_tau(tau)

    def set_tau(self, tau: int) -> None:
        """Choose the granularity.

        Raises:
            ValueError: If ``tau`` is not 0, 1, 2 or 4.
        """
        tau = Choice(choices=(UNIFORM, *TAUS)).read(tau, name='tau')
        self.tau = torch.tensor(
            [tau], dtype=torch.int32, device=self.scale.device
        )

    def calibrate(self) -> bool:
        """Set scale and tau from the observer, if it saw anything."""
        observer = self.observer
        if not isinstance(observer, AttentionOutputObserver):
            return super().calibrate()
        if not observer.observed:
            return False
        self.set_bounds(signed=False)
        self.granularity = observer.search()
        self._set_scale(self.granularity.scale)
        self.tau = self.granularity.tau
        self.observer = None
        return True

    def set_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Put the top level at ``max_val``, (1,) or (H,)."""
        self._set_scale(max_val)

    def _set_scale(self, scale: Tensor) -> None:
        self.scale = scale.float().reshape(-1).clamp(min=TINY)
        self.gain.data = torch.ones_like(self.scale)

    def report(self) -> dict[str, Any] | None:
        """Return the result of the search."""
        return None if self.granularity is None else self.granularity.to_dict()

    def learnable(self) -> list[nn.Parameter]:
        """Return the gain of the scale."""
        return [self.gain] if self.calibrated else []

    @torch.no_grad()
    def settle(self) -> None:
        """Fold the learned gain into the scale, after training."""
        gain = self.gain.clamp(min=MIN_GAIN)
        self.scale = (self.scale * gain).clamp(min=TINY)
        self.gain.data = torch.ones_like(self.scale)

    @property
    def num_codes(self) -> int:
        """Number of codes from 0 on, with that of an exact zero."""
        return self.spec.num_levels + 1

    def quantize(self, x: Tensor) -> Tensor:
        """Return codes, int32; 2^b marks an exact zero."""
        scale, tau = self._grid_for(x)
        codes = grid_codes(
            x, scale=scale, tau=tau, num_levels=self.spec.num_levels
        )
        return codes.clamp_(max=self.spec.num_levels).to(torch.int32)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return the float values of codes."""
        scale, tau = self._grid_for(codes)
        return grid_values(
            codes, scale=scale, tau=tau, num_levels=self.spec.num_levels
        )

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid, with gradients for it and the gain."""
        scale, tau = self._grid_for(x)
        return power_of_two_fake_quantize(
            x, scale=scale, tau=tau, num_levels=self.spec.num_levels
        )

    def _grid_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and tau, shaped to broadcast against ``x``."""
        # A gain below the limit must still get its gradient.
        limited = self.gain.clamp(min=MIN_GAIN)
        gain = self.gain + (limited - self.gain).detach()
        heads = self.scale.numel()
        if heads > 1 and (x.dim() < 3 or x.shape[-3] != heads):
            raise ValueError(
                f'{heads} scales, one per head, do not fit attention weights '
                f'of shape {tuple(x.shape)}: give (..., heads, N, M), or set '
                'per_head=False'
            )
        scale, tau = self.scale * gain, self.tau
        return (
            scale.reshape(-1, 1, 1) if heads > 1 else scale.reshape(()),
            tau.reshape(-1, 1, 1) if tau.numel() > 1 else tau.reshape(()),
        )


def power_of_two_fake_quantize(
    x: Tensor, *, scale: Tensor, tau: Tensor, num_levels: int
) -> Tensor:
    """Quantize and dequantize on the power grid, with gradients.

    A grid scales with its scale, Q(c x; c s) = c Q(x; s), so by Euler's
    identity ``dQ/ds = (Q - x dQ/dx) / s``. With the straight-through dQ/dx
    (1 up to the top level, 0 above) this is (x_hat - x) / s and 1: LSQ's rule
    (Esser et al., ICLR 2020, Eq. 3) for any grid. Straight-through rounding
    inside the logarithm would yield 0 for every x below the top level. LSQ's
    gradient factor is omitted because Adam cancels it.

    Args:
        x: Any shape, in [0, 1].
        scale: Positive, broadcastable to ``x``.
        tau: Broadcastable to ``x``.
        num_levels: Number of levels; larger codes mean 0.

    Returns:
        Shape and dtype of ``x``.
    """
    out: Tensor = _PowerOfTwo.apply(  # type: ignore[no-untyped-call]
        x, scale, tau, num_levels
    )
    return out


class _PowerOfTwo(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, tau: Tensor, num_levels: int
    ) -> Tensor:
        codes = grid_codes(x, scale=scale, tau=tau, num_levels=num_levels)
        x_hat = grid_values(
            codes, scale=scale, tau=tau, num_levels=num_levels
        ).to(x.dtype)
        if any(ctx.needs_input_grad[:2]):
            passes = (x <= scale).to(x.dtype)
            slope = torch.where(x <= scale, (x_hat - x) / scale, 1.0)
            ctx.save_for_backward(passes, slope)
            ctx.shape = scale.shape
        return x_hat

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        gradient = gradients[0]
        passes, slope = ctx.saved_tensors
        grad_scale = (gradient * slope).sum_to_size(ctx.shape)
        return gradient * passes, grad_scale, None, None
