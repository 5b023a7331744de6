"""Feature pyramid with position attention on its coarsest level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from taskptq.hosts import register_counterpart

from .quantized import QuantPositionAttention

__all__ = ['AttentionLayer', 'PositionAttention', 'TransFPN', 'sine_embedding']

_NORM = {'type': 'BN'}


class PositionAttention(BaseModule):
    """``x + gamma softmax(q k^T) v`` over the cells of a map.

    The logits are not scaled; gamma starts at 0.

    Args:
        channels: Channels of input and output.
        key_channels: Channels of q and k.
    """

    def __init__(self, channels: int, *, key_channels: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(channels, key_channels, 1)
        self.key_conv = nn.Conv2d(channels, key_channels, 1)
        self.value_conv = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend, (B, C, H, W) -> the same."""
        q, k, v = self.project(x)
        out = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return self.add(x, out)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k and v, (B, H * W, C') each."""
        q, k, v = (
            conv(x).flatten(2).transpose(1, 2)
            for conv in (self.query_conv, self.key_conv, self.value_conv)
        )
        return q, k, v

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        """Add the attention's output, (B, H * W, C), to the map."""
        return x + self.gamma * out.transpose(1, 2).reshape(x.shape)


register_counterpart(PositionAttention, QuantPositionAttention)


class AttentionLayer(BaseModule):
    """Convolution, sine embedding, position attention, convolution.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output, an even number.
        key_channels: Channels of q and k.
    """

    def __init__(
        self, in_channels: int, *, channels: int, key_channels: int
    ) -> None:
        super().__init__()
        self.conv_in = ConvModule(
            in_channels, channels, 3, padding=1, norm_cfg=_NORM
        )
        self.attention = PositionAttention(channels, key_channels=key_channels)
        self.conv_out = ConvModule(
            channels, channels, 3, padding=1, norm_cfg=_NORM
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply, (B, C_in, H, W) -> (B, C, H, W)."""
        x = self.conv_in(x)
        x = x + sine_embedding(x.shape[1], x.shape[2], x.shape[3]).to(x)
        return self.conv_out(self.attention(x))


@MODELS.register_module()
class TransFPN(BaseModule):
    """Top-down pyramid over an attended coarsest level.

    The neck of GANet (arXiv 2204.07335) and CondLaneNet.

    Args:
        in_channels: Channels of the backbone's maps, finest first.
        out_channels: Channels of every output.
        key_channels: Channels of q and k.
        num_attention: Attention layers on the coarsest map.
        smooth: Whether a 3x3 convolution follows each sum.
        num_outs: Number of returned levels, finest first.
        init_cfg: See mmengine's BaseModule.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        out_channels: int = 64,
        key_channels: int = 16,
        num_attention: int = 2,
        smooth: bool = True,
        num_outs: int = 1,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        widths = [in_channels[-1]] + [out_channels] * num_attention
        self.encoder = nn.Sequential(
            *[
                AttentionLayer(
                    width, channels=out_channels, key_channels=key_channels
                )
                for width in widths[:-1]
            ]
        )
        self.laterals = nn.ModuleList(
            nn.Conv2d(width, out_channels, 1)
            for width in [*in_channels[:-1], widths[-1]]
        )
        self.smooths = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, 3, padding=1)
            for _ in range(num_outs if smooth else 0)
        )
        self.num_outs = num_outs

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the maps of the finest levels, finest first."""
        feats = [*feats[:-1], self.encoder(feats[-1])]
        maps = [
            lateral(x) for lateral, x in zip(self.laterals, feats, strict=True)
        ]
        for level in range(len(maps) - 1, 0, -1):
            above = F.interpolate(maps[level], size=maps[level - 1].shape[-2:])
            maps[level - 1] = maps[level - 1] + above
        outs = maps[: self.num_outs]
        if len(self.smooths):
            outs = [
                conv(x) for conv, x in zip(self.smooths, outs, strict=True)
            ]
        return tuple(outs)


def sine_embedding(channels: int, height: int, width: int) -> Tensor:
    """Return DETR's fixed embedding of the cells, not normalized.

    Args:
        channels: Number of channels; half encode the row, half the column.
        height: In cells, counted from 1.
        width: In cells.

    Returns:
        (channels, height, width).
    """
    half = channels // 2
    index = torch.arange(half)
    period = 10000 ** (2 * (index // 2) / half)
    parts = []
    for count, shape in ((height, (1, height, 1)), (width, (1, 1, width))):
        phase = torch.arange(1, count + 1) / period[:, None]
        even = (index % 2 == 0)[:, None]
        wave = phase.sin().where(even, phase.cos())
        parts.append(wave.view(half, *shape[1:]).expand(half, height, width))
    return torch.cat(parts)
