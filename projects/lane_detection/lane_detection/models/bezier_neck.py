"""Neck of BezierLaneNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from taskptq.hosts import register_counterpart

from .quantized import QuantDeformConv2d

try:
    from torchvision.ops import DeformConv2d
except ImportError:
    DeformConv2d = None
else:
    # The rows of this project quantize the input of the sampling.
    register_counterpart(DeformConv2d, QuantDeformConv2d, force=True)

__all__ = ['BezierNeck', 'DilatedBottleneck', 'FeatureFlipFusion']

_NORM = {'type': 'BN'}


class DilatedBottleneck(BaseModule):
    """``x + f(x)``; the last activation is before the addition.

    Args:
        channels: Channels of input and output.
        mid_channels: Channels of the dilated convolution.
        dilation: Dilation of the 3x3 convolution.
    """

    def __init__(
        self, channels: int, *, mid_channels: int, dilation: int
    ) -> None:
        super().__init__()
        self.reduce = ConvModule(channels, mid_channels, 1, norm_cfg=_NORM)
        self.dilated = ConvModule(
            mid_channels,
            mid_channels,
            3,
            padding=dilation,
            dilation=dilation,
            norm_cfg=_NORM,
        )
        self.expand = ConvModule(mid_channels, channels, 1, norm_cfg=_NORM)

    def forward(self, x: Tensor) -> Tensor:
        """Apply, (B, C, H, W) -> the same."""
        return x + self.expand(self.dilated(self.reduce(x)))


class FeatureFlipFusion(BaseModule):
    """Add the mirrored features, since lanes come in pairs.

    The mirrored map is aligned by a modulated deformable convolution, whose
    offsets and mask come from both maps.

    Args:
        channels: Channels of input and output.
        deformable: Whether to align; False uses an ordinary 3x3 convolution
            and needs no torchvision.

    Raises:
        ImportError: If torchvision is needed and missing.
    """

    def __init__(self, channels: int, *, deformable: bool = True) -> None:
        super().__init__()
        if deformable and DeformConv2d is None:
            raise ImportError(
                'deformable=True needs torchvision.ops.DeformConv2d: install '
                'torchvision, or set deformable=False'
            )
        self.project = ConvModule(
            channels, channels, 1, norm_cfg=_NORM, act_cfg=None
        )
        self.conv_offset: nn.Module | None = None
        # Quantization folds conv1 and bn1 by these names.
        if deformable:
            # dy, dx of the nine taps, and a weight of each
            self.conv_offset = nn.Conv2d(2 * channels, 27, 3, padding=1)
            self.conv1 = DeformConv2d(channels, channels, 3, padding=1)
        else:
            self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)

    def init_weights(self) -> None:
        """Start with no displacement and weights of a half."""
        super().init_weights()
        if self.conv_offset is not None:
            nn.init.zeros_(self.conv_offset.weight)
            nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Fuse, (B, C, H, W) -> the same."""
        own = self.project(x)
        mirrored = x.flip(-1)
        if self.conv_offset is None:
            mixed = self.conv1(mirrored)
        else:
            both = self.conv_offset(torch.cat([mirrored, own], dim=1))
            offset, mask = both.split([18, 9], dim=1)
            mixed = self.conv1(mirrored, offset, mask.sigmoid())
        return (own + self.bn1(mixed)).relu()


@MODELS.register_module()
class BezierNeck(BaseModule):
    """Dilated bottlenecks and feature flip fusion (arXiv 2203.02431).

    Args:
        in_channels: Channels of the last feature map.
        mid_channels: Channels of the bottlenecks.
        dilations: One bottleneck for each.
        deformable: See :class:`FeatureFlipFusion`.
        init_cfg: See mmengine's BaseModule.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        mid_channels: int = 64,
        dilations: Sequence[int] = (4, 8),
        deformable: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.bottlenecks = nn.Sequential(
            *[
                DilatedBottleneck(
                    in_channels, mid_channels=mid_channels, dilation=dilation
                )
                for dilation in dilations
            ]
        )
        self.fusion = FeatureFlipFusion(in_channels, deformable=deformable)

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the backbone's last map and the fused one."""
        x = feats[-1]
        return x, self.fusion(self.bottlenecks(x))
