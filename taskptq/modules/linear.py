"""Counterpart of nn.Linear."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.modules.base import QuantModule, Scheme, build_quantizer


class QuantLinear(QuantModule, nn.Linear):
    """Counterpart of nn.Linear and of mmcv's wrapper of it.

    ``forward(..., input_quantized=True)`` skips the input quantizer, for
    attention counterparts that quantize the common input of several
    projections once.
    """

    weight_slots: ClassVar[dict[str, str]] = {'weight': 'weight_quantizer'}

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the input and weight quantizers."""
        self.input_quantizer = build_quantizer(scheme.activation)
        super().add_quantizers(scheme)

    def forward(self, x: Tensor, *, input_quantized: bool = False) -> Tensor:
        """Project, (..., C_in) -> (..., C_out)."""
        if self.input_quantizer is not None and not input_quantized:
            x = self.input_quantizer(x)
        return F.linear(x, self.quantized_weight(), self.quantized_bias())
