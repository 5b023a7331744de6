"""Counterparts of this project's attentions, and of torchvision's DCN.

Everything else of the models is an ordinary convolution or linear layer,
which taskptq maps itself.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from taskptq.modules.attention import QuantAttention, quantized, show_value
from taskptq.modules.base import QuantModule, Scheme, build_quantizer

__all__ = [
    'QuantAnchorAttention',
    'QuantDeformConv2d',
    'QuantPositionAttention',
]


class QuantPositionAttention(QuantAttention):
    """Counterpart of trans_fpn.PositionAttention."""

    def forward(self, x: Tensor) -> Tensor:
        """Attend, (B, C, H, W) -> the same."""
        q, k, v = (part[:, None] for part in self.project(x))  # one head
        out, _ = self.attend(q, k, v)
        return self.add(x, self.attended(out[:, 0]))


class QuantAnchorAttention(QuantModule):
    """Counterpart of laneatt_head.AnchorAttention.

    A linear layer makes the logits, so only the attention's second matmul has
    two activations.
    """

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the quantizers of weights and features."""
        super().add_quantizers(scheme)
        self.softmax_quantizer = build_quantizer(scheme.softmax)
        self.value_quantizer = build_quantizer(scheme.value)

    def forward(self, local: Tensor) -> Tensor:
        """Attend, (B, N, C) -> (B, N, C)."""
        weights = self.weights(local)
        show_value(self.softmax_quantizer, local[:, None])
        weights = quantized(self.softmax_quantizer, weights[:, None])[:, 0]
        return weights @ quantized(self.value_quantizer, local)


class QuantDeformConv2d(QuantModule):
    """Counterpart of torchvision.ops.DeformConv2d.

    Features and weights are quantized; offsets and masks stay float, since
    they decide where and how much to read.
    """

    weight_slots: ClassVar[dict[str, str]] = {'weight': 'weight_quantizer'}

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the input and weight quantizers."""
        self.input_quantizer = build_quantizer(scheme.activation)
        super().add_quantizers(scheme)

    def forward(
        self, input: Tensor, offset: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Convolve, (B, C_in, H, W) -> (B, C_out, H', W')."""
        from torchvision.ops import deform_conv2d

        return deform_conv2d(
            quantized(self.input_quantizer, input),
            offset,
            self.quantized_weight(),
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        )
