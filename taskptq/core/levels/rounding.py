"""Learned rounding of weights to one of two neighbouring levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from taskptq.core.learned_rounding import (
    LearnedRounding,
    inverse_rectified_sigmoid,
    rectified_sigmoid_and_slope,
    soft_weight,
)
from taskptq.core.levels.estimators import clipped
from taskptq.core.levels.levels import as_rows, from_rows, nearest_level

if TYPE_CHECKING:
    from taskptq.core.base_quantizer import CodedQuantizer
    from taskptq.core.levels.quantizer import LevelQuantizer


class LevelRounding(LearnedRounding):
    """Learn which of the two levels around each weight it takes.

    AdaRound (Nagel et al., ICML 2020) on other than equal steps:
    ``w_hat = L_k + h(alpha) (L_{k+1} - L_k)``, starting at the float weight.

    Args:
        quantizer: The weight's calibrated quantizer.
        weight: The float weight, any shape.
    """

    low: Tensor
    gap: Tensor
    levels: Tensor

    def __init__(self, quantizer: LevelQuantizer, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.soft = True
        self.straight_through = False
        self._h: Tensor | None = None
        self._slope: Tensor | None = None
        self.ch_axis = quantizer.spec.ch_axis
        self.register_buffer('levels', quantizer.levels().detach())
        rows = self._rows(weight.detach())
        above = (rows[..., None] >= self.levels[:, None, 1:-1]).sum(dim=-1)
        self._set_lower(above, weight)
        rest = (weight.detach() - self.low) / self.gap.clamp(min=1e-30)
        self.alpha = nn.Parameter(inverse_rectified_sigmoid(rest.clamp(0, 1)))

    def _rows(self, x: Tensor) -> Tensor:
        return as_rows(x, ch_axis=self.ch_axis)

    def _shaped(self, rows: Tensor, like: Tensor) -> Tensor:
        shaped = from_rows(rows, like=like, ch_axis=self.ch_axis)
        return shaped.contiguous()

    def _set_lower(self, lower: Tensor, like: Tensor) -> None:
        """Set the index of the lower level of each weight, as rows."""
        values = self.levels.gather(1, lower)
        above = self.levels.gather(1, lower + 1)
        self.register_buffer('base', self._shaped(lower, like))
        self.register_buffer('low', self._shaped(values, like))
        self.register_buffer('gap', self._shaped(above - values, like))

    def forward(self) -> Tensor:
        """Return the weight: soft while training, else on its levels."""
        if not self.soft:
            return self._values(self.codes())
        with torch.no_grad():
            h, slope = rectified_sigmoid_and_slope(self.alpha)
            up = (self.alpha >= 0).to(h.dtype) if self.straight_through else h
            weight = torch.addcmul(self.low, up, self.gap)
            factor = slope * self.gap
        self._h, self._slope = h, slope
        return soft_weight(self.alpha, weight, factor)

    def _values(self, codes: Tensor) -> Tensor:
        rows = self.levels.gather(1, self._rows(codes).long())
        return self._shaped(rows, codes)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the hard-rounded codes, int32."""
        return (self.base + (self.alpha >= 0)).to(torch.int32)

    @torch.no_grad()
    def lean_towards(self, codes: Tensor, *, share: float = 0.9) -> None:
        """Start from earlier codes, which training may still change.

        Args:
            codes: Integer codes, shaped like the weight.
            share: h where they round up, in (0.5, 1); 1 - share elsewhere.
        """
        # Of a solved code, the neighbour on the side of the float weight.
        base = torch.where(codes < self.base, codes, self.base)
        base = torch.where(codes > base + 1, codes - 1, base)
        self._set_lower(self._rows(base).long(), codes)
        up = codes > self.base
        h = torch.where(up, share, 1 - share).to(self.alpha.dtype)
        self.alpha.copy_(inverse_rectified_sigmoid(h))


class LatentLevels(LearnedRounding):
    """Train any code of a weight, and its levels, through hard rounding.

    The latent weight counts in mean distances of its channel's levels, so
    that learning rates mean what they do on a uniform grid. Its gradient
    passes the rounding between the outermost levels.

    Args:
        quantizer: The weight's calibrated quantizer.
        weight: The float weight, any shape.
    """

    unit: Tensor

    def __init__(self, quantizer: LevelQuantizer, weight: Tensor) -> None:
        nn.Module.__init__(self)
        self.soft = True
        self.straight_through = True
        self._h = self._slope = None
        self.kind = quantizer.kind
        self.ch_axis = quantizer.spec.ch_axis
        self.scale = nn.Parameter(
            quantizer.coefficients.detach().clone(), requires_grad=False
        )
        self.shape = weight.shape
        levels = quantizer.levels().detach()
        unit = (levels[:, -1:] - levels[:, :1]) / max(levels.shape[1] - 1, 1)
        self.register_buffer('unit', unit)
        rows = as_rows(weight.detach(), ch_axis=self.ch_axis)
        ends = levels[:, :1], levels[:, -1:]
        self.alpha = nn.Parameter(rows.clamp(*ends) / unit)

    def forward(self) -> Tensor:
        """Return the weight on its levels."""
        levels = self._levels()
        rows = self.alpha * self.unit
        codes = nearest_level(rows.detach(), levels.detach())
        values = levels.gather(1, codes)
        passes = clipped(rows.detach(), levels.detach())
        straight = values + (rows - rows.detach()) * passes
        return self._shaped(straight)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the codes, int32."""
        levels = self._levels()
        codes = nearest_level(self.alpha * self.unit, levels)
        return self._shaped(codes).to(torch.int32)

    @torch.no_grad()
    def lean_towards(self, codes: Tensor, *, share: float = 0.9) -> None:
        """Start from earlier codes.

        Args:
            codes: Integer codes, shaped like the weight.
            share: Not used: a latent weight starts on its level.
        """
        del share
        rows = as_rows(codes, ch_axis=self.ch_axis).long()
        levels = self._levels()
        self.alpha.copy_(levels.gather(1, rows) / self.unit)

    @torch.no_grad()
    def settle(self, quantizer: CodedQuantizer) -> None:
        """Give the quantizer the levels that were learned."""
        levels = cast('LevelQuantizer', quantizer)
        levels.set_coefficients(self.kind.repaired(self.scale.detach()))

    def _levels(self) -> Tensor:
        # Training may leave what is valid; a file must not.
        return self.kind.ordered(self.kind.repaired(self.scale))[0]

    def _shaped(self, rows: Tensor) -> Tensor:
        like = torch.empty(self.shape, device='meta')
        shaped = from_rows(rows, like=like, ch_axis=self.ch_axis)
        return shaped.contiguous()
