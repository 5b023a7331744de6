"""Counterparts of 1-d convolutions."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.modules.conv import QuantConv, QuantTransposed


class QuantConv1d(QuantConv, nn.Conv1d):
    """Counterpart of nn.Conv1d."""

    spatial_dims: ClassVar[int] = 1
    closed_form: ClassVar[bool] = False

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (B, C_in, L) -> (B, C_out, L')."""
        out: Tensor = self._conv_forward(
            self.quantized_input(x),
            self.quantized_weight(),
            self.quantized_bias(),
        )
        return out


class QuantConvTranspose1d(QuantTransposed, nn.ConvTranspose1d):
    """Counterpart of nn.ConvTranspose1d."""

    spatial_dims: ClassVar[int] = 1
    closed_form: ClassVar[bool] = False

    def forward(
        self, x: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        """Convolve, (B, C_in, L) -> (B, C_out, L')."""
        return F.conv_transpose1d(*self.operands(x, output_size))
