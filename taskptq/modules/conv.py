"""Counterparts of 2-d convolutions, and what those of 1-d ones share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from taskptq.modules.base import QuantModule, Scheme, build_quantizer


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output channel of a convolution reads one input channel.

    Input scales per channel are then exact in integers: the scale of an
    output channel is that of its input channel times that of its weight.
    """
    groups = getattr(module, 'groups', 1)
    return bool(groups > 1 and groups == getattr(module, 'in_channels', None))


class QuantConv(QuantModule):
    """What the counterparts of convolutions share."""

    in_channels: int
    weight_slots: ClassVar[dict[str, str]] = {'weight': 'weight_quantizer'}
    spatial_dims: ClassVar[int] = 2

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
        # A grid's axis counts from the front, and an image may come alone.
        alone = (
            quantizer.spec.ch_axis is not None
            and x.dim() == self.spatial_dims + 1
        )
        x_hat: Tensor = quantizer(x[None] if alone else x)
        return x_hat[0] if alone else x_hat


class QuantConv2d(QuantConv, nn.Conv2d):
    """Counterpart of nn.Conv2d and of mmcv's wrapper of it."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (B, C_in, H, W) -> (B, C_out, H', W')."""
        out: Tensor = self._conv_forward(
            self.quantized_input(x),
            self.quantized_weight(),
            self.quantized_bias(),
        )
        return out


class QuantTransposed(QuantConv, _ConvTransposeNd):
    """What the counterparts of transposed convolutions share.

    With groups, the weight is stored as (C_out, C_in / groups, ...), like a
    convolution's: in torch's layout the groups share one channel axis, so
    they would share scales.
    """

    # Without groups the weight is (C_in, C_out, ...).
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

    def operands(
        self, x: Tensor, output_size: list[int] | None
    ) -> tuple[Any, ...]:
        """Return what ``F.conv_transposeNd`` takes, in its order."""
        output_padding = self._output_padding(
            x,
            output_size,
            list(self.stride),
            list(self.padding),  # type: ignore[arg-type]
            list(self.kernel_size),
            self.spatial_dims,
            list(self.dilation),
        )
        weight = self.quantized_weight()
        if self.groups > 1:
            weight = by_input_channel(weight, groups=self.groups)
        return (
            self.quantized_input(x),
            weight,
            self.quantized_bias(),
            self.stride,
            self.padding,
            output_padding,
            self.groups,
            self.dilation,
        )


class QuantConvTranspose2d(QuantTransposed, nn.ConvTranspose2d):
    """Counterpart of nn.ConvTranspose2d and of mmcv's wrapper of it."""

    def forward(
        self, x: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        """Convolve, (B, C_in, H, W) -> (B, C_out, H', W')."""
        return F.conv_transpose2d(*self.operands(x, output_size))


def by_output_channel(weight: Tensor, *, groups: int) -> Tensor:
    """Rearrange the weight of a grouped transposed convolution.

    >>> import torch
    >>> by_output_channel(torch.zeros(6, 4, 3, 3), groups=2).shape
    torch.Size([8, 3, 3, 3])

    Args:
        weight: (C_in, C_out / groups, ...), torch's layout.
        groups: Groups.

    Returns:
        (C_out, C_in / groups, ...), contiguous.
    """
    grouped: Tensor = weight.unflatten(0, (groups, -1))
    return grouped.transpose(1, 2).flatten(0, 1).contiguous()


def by_input_channel(weight: Tensor, *, groups: int) -> Tensor:
    """Undo :func:`by_output_channel`, which is its own inverse."""
    return by_output_channel(weight, groups=groups)
