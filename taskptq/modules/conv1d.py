"""Counterparts of 1-d convolutions."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.modules.base import QuantModule, Scheme, build_quantizer
from taskptq.modules.conv import (
    by_input_channel,
    by_output_channel,
    is_depthwise,
)


class _QuantConv1d(QuantModule):
    in_channels: int
    weight_slots: ClassVar[dict[str, str]] = {'weight': 'weight_quantizer'}
    closed_form: ClassVar[bool] = False

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the input and weight quantizers."""
        self.input_quantizer = build_quantizer(
            scheme.activation,
            num_channels=self.in_channels if is_depthwise(self) else None,
        )
        super().add_quantizers(scheme)

    def quantized_input(self, x: Tensor) -> Tensor:
        """Return the input as the convolution reads it."""
        quantizer = self.input_quantizer
        if quantizer is None:
            return x
        # A grid's axis counts from the front, and a signal may come alone.
        alone = quantizer.spec.ch_axis is not None and x.dim() == 2
        x_hat: Tensor = quantizer(x[None] if alone else x)
        return x_hat[0] if alone else x_hat


class QuantConv1d(_QuantConv1d, nn.Conv1d):
    """Counterpart of nn.Conv1d."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (B, C_in, L) -> (B, C_out, L')."""
        out: Tensor = self._conv_forward(
            self.quantized_input(x), self.quantized_weight(), self.bias
        )
        return out


class QuantConvTranspose1d(_QuantConv1d, nn.ConvTranspose1d):
    """Counterpart of nn.ConvTranspose1d.

    With groups, the weight is stored as that of a convolution; see
    ``QuantConvTranspose2d``.
    """

    # Without groups the weight is C_in x C_out x k.
    weight_axes: ClassVar[dict[str, int]] = {'weight': 1}

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the quantizers; rearrange a grouped weight."""
        weight: Tensor = self.weight
        if self.groups > 1:
            self.weight = nn.Parameter(
                by_output_channel(weight.detach(), groups=self.groups),
                requires_grad=weight.requires_grad,
            )
        super().add_quantizers(scheme)

    def weight_axis(self, parameter: str) -> int:
        """Return the output-channel axis of a weight as stored."""
        return super().weight_axis(parameter) if self.groups == 1 else 0

    def forward(
        self, x: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        """Convolve, (B, C_in, L) -> (B, C_out, L')."""
        output_padding = self._output_padding(
            x,
            output_size,
            list(self.stride),
            list(self.padding),  # type: ignore[arg-type]
            list(self.kernel_size),
            1,
            list(self.dilation),
        )
        weight = self.quantized_weight()
        if self.groups > 1:
            weight = by_input_channel(weight, groups=self.groups)
        return F.conv_transpose1d(
            self.quantized_input(x),
            weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            output_padding,
            self.groups,
            self.dilation,
        )
