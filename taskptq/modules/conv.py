"""Counterparts of 2-d convolutions."""
from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.modules.base import QuantModule, Scheme, build_quantizer


class _QuantConv(QuantModule):
    weight_slots: ClassVar[dict[str, str]] = {'weight': 'weight_quantizer'}

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the input and weight quantizers."""
        self.input_quantizer = build_quantizer(scheme.activation)
        super().add_quantizers(scheme)

    def quantized_input(self, x: Tensor) -> Tensor:
        """Return the input as the convolution must see it."""
        if self.input_quantizer is None:
            return x
        x_hat: Tensor = self.input_quantizer(x)
        return x_hat


class QuantConv2d(_QuantConv, nn.Conv2d):
    """Counterpart of nn.Conv2d and of mmcv's wrapper of it."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (B, C_in, H, W) -> (B, C_out, H', W')."""
        out: Tensor = self._conv_forward(
            self.quantized_input(x), self.quantized_weight(), self.bias
        )
        return out


class QuantConvTranspose2d(_QuantConv, nn.ConvTranspose2d):
    """Counterpart of nn.ConvTranspose2d and of mmcv's wrapper of it."""

    # weight: C_in x (C_out / groups) x kH x kW
    weight_axes: ClassVar[dict[str, int]] = {'weight': 1}

    def forward(
        self, x: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        """Convolve, (B, C_in, H, W) -> (B, C_out, H', W')."""
        output_padding = self._output_padding(
            x,
            output_size,
            list(self.stride),
            list(self.padding),  # type: ignore[arg-type]
            list(self.kernel_size),
            2,
            list(self.dilation),
        )
        return F.conv_transpose2d(
            self.quantized_input(x),
            self.quantized_weight(),
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
        )
