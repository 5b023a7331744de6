"""Counterpart of convolutions that pad their input to TensorFlow's 'same'."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from taskptq.modules.conv import QuantConv2d


class QuantSamePaddingConv2d(QuantConv2d):
    """Counterpart of mmcv's Conv2dAdaptivePadding.

    Each side of the output has ceil(input / stride) pixels; what is missing
    is padded with zeros, the odd pixel at the end. Used through
    :func:`taskptq.modules.dynamic_class.counterpart_class`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, (B, C_in, H, W) -> (B, C_out, H', W')."""
        ends: list[int] = []
        # F.pad takes the last axis first.
        for axis in (1, 0):
            missing = self._missing(x.shape[axis - 2], axis)
            ends += [missing // 2, missing - missing // 2]
        x = self.quantized_input(x)
        x = F.pad(x, ends) if any(ends) else x
        out: Tensor = self._conv_forward(
            x, self.quantized_weight(), self.quantized_bias()
        )
        return out

    def _missing(self, size: int, axis: int) -> int:
        """Return the pixels that one side of the input lacks."""
        stride, taps = self.stride[axis], self.kernel_size[axis]
        outputs = -(-size // stride)
        reach = (outputs - 1) * stride + (taps - 1) * self.dilation[axis] + 1
        return max(reach - size, 0)
