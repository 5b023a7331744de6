"""Layers that scale, and perhaps shift, each input channel first.

A scale per channel of a dense layer's input has no integer form, since the
accumulator adds up channels. As a factor in front of one common grid, undone
in the weight, it has one: ``W x = (W s)(x / s)``. A shift of the channels goes
into the bias: ``W x = W (x - z) + W z``.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from taskptq.modules.conv import QuantConv2d
from taskptq.modules.linear import QuantLinear

_Layer = TypeVar('_Layer', bound='_Scaled')


class _Scaled(nn.Module):
    input_factor: Tensor
    input_offset: Tensor | None

    @classmethod
    def wrap(
        cls: type[_Layer], layer: nn.Module, *, shifted: bool = False
    ) -> _Layer:
        """Make a layer with factors of 1 that shares a layer's parameters.

        Args:
            layer: Conv2d or Linear.
            shifted: Whether it has offsets as well, 0 at first; never for a
                convolution that pads.
        """
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.__dict__.update(
            {
                name: value.copy() if isinstance(value, dict) else value
                for name, value in layer.__dict__.items()
            }
        )
        weight = cast('Tensor', layer.weight)
        channels = weight.shape[1] * int(getattr(layer, 'groups', 1))
        factor = torch.ones(channels, dtype=weight.dtype, device=weight.device)
        new.register_buffer('input_factor', factor)
        offset = torch.zeros_like(factor) if shifted else None
        new.register_buffer('input_offset', offset)
        return new

    def scaled_input(self, x: Tensor) -> Tensor:
        """Return input times factor plus offset of its channel, same shape."""
        x = x * self._by_channel(self.input_factor)
        if self.input_offset is not None:
            x = x + self._by_channel(self.input_offset)
        return x

    def _by_channel(self, values: Tensor) -> Tensor:
        is_conv = isinstance(self, nn.Conv2d)
        return values[:, None, None] if is_conv else values


class ScaledConv2d(_Scaled, nn.Conv2d):
    """Conv2d of x * ``input_factor`` + ``input_offset``, each (C_in,)."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (B, C_in, H, W) -> (B, C_out, H', W')."""
        x = self.scaled_input(x)
        out: Tensor = self._conv_forward(x, self.weight, self.bias)
        return out


class ScaledLinear(_Scaled, nn.Linear):
    """Linear of x * ``input_factor`` + ``input_offset``, each (C_in,)."""

    def forward(self, x: Tensor) -> Tensor:
        """Project, (..., C_in) -> (..., C_out)."""
        return nn.Linear.forward(self, self.scaled_input(x))


class QuantScaledConv2d(QuantConv2d, ScaledConv2d):
    """Counterpart of ScaledConv2d; the grid is that of the scaled input."""

    def quantized_input(self, x: Tensor) -> Tensor:
        """Return the input as the convolution reads it."""
        return super().quantized_input(self.scaled_input(x))


class QuantScaledLinear(QuantLinear, ScaledLinear):
    """Counterpart of ScaledLinear; the grid is that of the scaled input."""

    def quantized_input(self, x: Tensor) -> Tensor:
        """Return the input as the product reads it."""
        x = self.scaled_input(x)
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return x

    def forward(self, x: Tensor, *, input_quantized: bool = False) -> Tensor:
        """Project, (..., C_in) -> (..., C_out)."""
        if not input_quantized:
            x = self.quantized_input(x)
        return super().forward(x, input_quantized=True)
