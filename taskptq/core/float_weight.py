"""Weights that stay float: a mask may set elements to 0, the others train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from taskptq.core.functional import per_channel
from taskptq.core.learned_rounding import LearnedRounding
from taskptq.core.observers import Observer
from taskptq.core.quantizers import Quantizer
from taskptq.core.spec import QuantSpec

# Unit of training, per channel: the largest weight takes so many. This is a
# step of an 8-bit grid, so learning rates mean the same with and without one.
UNITS = 127


class FloatQuantizer(Quantizer):
    """No grid at all: a weight passes, but for what its mask sets to 0.

    Of a sparse model with float weights. It has no range to calibrate; where
    others have integer codes, it has the values themselves.

    >>> quantizer = FloatQuantizer(QuantSpec())
    >>> quantizer.enabled = True
    >>> quantizer.mask = torch.tensor([True, False])
    >>> quantizer(torch.tensor([0.3, 0.1]))
    tensor([0.3000, 0.0000])

    Args:
        spec: Unused but for its place among quantizers.
        observer: Dropped: there is no range to find.
    """

    points = ('weight',)

    def __init__(
        self, spec: QuantSpec, *, observer: Observer | None = None
    ) -> None:
        del observer
        super().__init__(spec)

    def forward(self, x: Tensor) -> Tensor:
        """Return a weight, masked if enabled; any shape."""
        return self.masked(x) if self.enabled and not self.frozen else x

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return the masked weight."""
        return self.masked(x)

    def calibrate(self) -> bool:
        """Do nothing: there is no range."""
        return False

    def quantize(self, x: Tensor) -> Tensor:
        """Return the masked values, which stand for codes."""
        return self.masked(x)

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return the values that stand for codes."""
        return codes

    def extra_repr(self) -> str:
        """Show that it has no grid in ``print(model)``."""
        return 'float' if self.mask is None else 'float, masked'


class FreeWeight(LearnedRounding):
    """Train a float weight itself, in units of its channel.

    ``w = u v`` with u the largest magnitude of a channel over 127, fixed,
    and v the parameter ``alpha``: one learning rate suits all channels and,
    like that of :class:`~taskptq.core.LatentWeight`, counts in steps of an
    8-bit grid.

    Args:
        weight: Any shape.
        ch_axis: Its output channels.
    """

    def __init__(self, weight: Tensor, *, ch_axis: int = 0) -> None:
        nn.Module.__init__(self)
        self.soft = False
        self.straight_through = True
        weight = weight.detach()
        rows = weight.transpose(0, ch_axis).flatten(1)
        largest = rows.abs().amax(dim=1) if rows.numel() else rows.new_zeros(0)
        unit = torch.where(largest > 0, largest / UNITS, 1.0)
        self.register_buffer(
            'scale', per_channel(unit, ndim=weight.dim(), ch_axis=ch_axis)
        )
        self.alpha = nn.Parameter(weight / self.scale)

    def forward(self) -> Tensor:
        """Return the weight."""
        return self.alpha * self.scale

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the weight's values, which stand for codes."""
        return self.alpha * self.scale

    @torch.no_grad()
    def lean_towards(self, codes: Tensor, *, share: float = 0.9) -> None:
        """Start from earlier values.

        Args:
            codes: Values, shaped like the weight.
            share: Not used.
        """
        del share
        self.alpha.copy_(codes / self.scale)

    @torch.no_grad()
    def settled(self) -> Tensor:
        """Return how many weights are settled: all of them, always."""
        return torch.tensor(self.alpha.numel(), device=self.alpha.device)

    def add_penalty_gradient(self, *, weight: Tensor, beta: int) -> None:
        """Add nothing: there are no roundings to settle."""
