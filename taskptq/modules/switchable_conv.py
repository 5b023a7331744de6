"""Counterpart of mmcv's SAConv2d, a switchable atrous convolution."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.modules.base import QuantModule, Scheme, build_quantizer
from taskptq.modules.deform_conv import multiply_sampled, sample

# The second convolution reads pixels this much further apart.
WIDER = 3


class QuantSwitchableConv2d(QuantModule):
    """Two convolutions of one input, mixed by a switch for each pixel.

    DetectoRS, Qiao et al., CVPR 2021, Eq. 1: S conv(x, w, 1) + (1 - S)
    conv(x, w + dw, 3). Both read one input with one scale. The weights that
    are stored are those that multiply: ``weight`` is the standardized w and
    ``weight_diff`` the standardized w + dw. Switch, contexts and offsets are
    layers with counterparts of their own. Where the convolutions are
    deformable, the values read are quantized, as in
    :class:`~taskptq.modules.deform_conv.QuantDeformConv2d`.

    Used through :func:`taskptq.modules.dynamic_class.counterpart_class`.
    """

    weight_slots: ClassVar[dict[str, str]] = {
        'weight': 'weight_quantizer',
        'weight_diff': 'wide_weight_quantizer',
    }
    # The host ignores the bias that it has.
    bias_slots: ClassVar[dict[str, str]] = {}
    closed_form: ClassVar[bool] = False
    weight: Tensor
    weight_diff: Tensor
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    use_deform: bool
    switch: nn.Module
    pre_context: nn.Module
    post_context: nn.Module
    offset_s: nn.Module
    offset_l: nn.Module

    def add_quantizers(self, scheme: Scheme) -> None:
        """Store the weights that multiply; register the quantizers."""
        host: Any = self
        with torch.no_grad():
            weight = host._get_weight(self.weight).clone()
            stored = {
                'weight': weight,
                'weight_diff': weight + self.weight_diff,
            }
        for name, value in stored.items():
            learned = getattr(self, name).requires_grad
            setattr(self, name, nn.Parameter(value, requires_grad=learned))
        self.input_quantizer = build_quantizer(scheme.activation)
        super().add_quantizers(scheme)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (B, C_in, H, W) -> (B, C_out, H', W')."""
        x = x + self.pre_context(F.adaptive_avg_pool2d(x, 1))
        near = F.pad(x, (2, 2, 2, 2), mode='reflect')
        near = F.avg_pool2d(near, 5, stride=1)
        switch = self.switch(near)  # B x 1 x H' x W'
        if self.use_deform:
            small = self._deformed(x, self.offset_s(near), 'weight', 1)
            large = self._deformed(
                x, self.offset_l(near), 'weight_diff', WIDER
            )
        else:
            x = self._quantized(x)
            small = self._plain(x, 'weight', 1)
            large = self._plain(x, 'weight_diff', WIDER)
        out = switch * small + (1 - switch) * large
        out = out + self.post_context(F.adaptive_avg_pool2d(out, 1))
        found: Tensor = out
        return found

    def _quantized(self, x: Tensor) -> Tensor:
        if self.input_quantizer is None:
            return x
        found: Tensor = self.input_quantizer(x)
        return found

    def _plain(self, x: Tensor, parameter: str, rate: int) -> Tensor:
        return F.conv2d(
            x,
            self.quantized_weight(parameter),
            stride=self.stride,
            padding=_times(self.padding, rate),
            dilation=_times(self.dilation, rate),
            groups=self.groups,
        )

    def _deformed(
        self, x: Tensor, offset: Tensor, parameter: str, rate: int
    ) -> Tensor:
        values = sample(
            x,
            offset,
            kernel_size=self.kernel_size,
            stride=self.stride,
            padding=_times(self.padding, rate),
            dilation=_times(self.dilation, rate),
        )
        return multiply_sampled(
            self._quantized(values),
            self.quantized_weight(parameter),
            groups=self.groups,
        )


def _times(sizes: tuple[int, int], rate: int) -> tuple[int, int]:
    return sizes[0] * rate, sizes[1] * rate
