"""RESA: messages between rows and columns that are far apart.

Architecture after Zheng et al., "RESA: Recurrent Feature-Shift Aggregator for
Lane Detection", AAAI 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional

from .scnn import DIRECTIONS, direction_kernel

__all__ = ['BilateralUpsampler', 'NonBottleneck1d', 'RESANeck', 'shift_of']


def shift_of(direction: str, step: int, *, num_steps: int, size: int) -> int:
    """Return the distance of the slice that a step reads.

    Step k reads ``x[(i + size // 2^(num_steps - k)) mod size]`` for messages
    that go down or right, with the opposite sign otherwise. After all steps,
    each slice has received messages from all others.

    Args:
        direction: One of ``DIRECTIONS``.
        step: From 0.
        num_steps: Number of steps per direction.
        size: Number of slices.
    """
    distance = size // 2 ** (num_steps - step)
    return distance if direction in ('down', 'right') else -distance


@MODELS.register_module()
class RESANeck(BaseModule):
    """Reduce the channels, then add shifted copies in four directions.

    ``x <- x + alpha * relu(conv_k(shifted x))`` with a separate kernel for
    each direction and step.

    Args:
        in_channels: Channels of the input map.
        channels: Channels of the result.
        kernel_size: Taps of the message kernels.
        num_steps: Steps of each direction.
        alpha: Weight of the messages.
        in_index: Index of the backbone's map to read.
        norm_cfg: Norm of the reduction.
        init_cfg: See mmengine's BaseModule.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        channels: int = 128,
        kernel_size: int = 9,
        num_steps: int = 4,
        alpha: float = 2.0,
        in_index: int = -1,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_index = in_index
        self.num_steps = num_steps
        self.alpha = alpha
        self.reduce = ConvModule(
            in_channels, channels, 1, norm_cfg=norm_cfg or {'type': 'BN'}
        )
        self.messages = nn.ModuleDict(
            {
                direction: nn.ModuleList(
                    message_conv(channels, direction, kernel_size)
                    for _ in range(num_steps)
                )
                for direction in DIRECTIONS
            }
        )

    def init_weights(self) -> None:
        """Initialize with small message kernels, as in SCNN."""
        super().init_weights()
        for convs in self.messages.values():
            for module in convs:
                weight = module.conv.weight
                bound = (2 / (5 * weight[0].numel())) ** 0.5
                nn.init.uniform_(weight, -bound, bound)

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor]:
        """Return one map, (B, channels, H, W)."""
        x = self.reduce(feats[self.in_index])
        for direction, convs in self.messages.items():
            axis = 2 if direction in ('down', 'up') else 3
            for step, conv in enumerate(convs):
                shift = shift_of(
                    direction,
                    step,
                    num_steps=self.num_steps,
                    size=x.shape[axis],
                )
                # roll by -s puts slice i + s at i.
                x = x + self.alpha * conv(torch.roll(x, -shift, dims=axis))
        return (x,)


def message_conv(
    channels: int, direction: str, kernel_size: int
) -> ConvModule:
    """Return a conv and ReLU whose kernel lies across a direction."""
    kernel = direction_kernel(direction, kernel_size)
    return ConvModule(
        channels,
        channels,
        kernel,
        padding=(kernel[0] // 2, kernel[1] // 2),
        bias=False,
        inplace=False,
    )


class NonBottleneck1d(BaseModule):
    """Two pairs of a 3x1 and a 1x3 conv, with a residual.

    After Romera et al., "ERFNet", T-ITS 2018.

    Args:
        channels: Channels of input and output.
        norm_cfg: Norm after each pair.
    """

    def __init__(self, channels: int, *, norm_cfg: dict[str, Any]) -> None:
        super().__init__()
        tall = {'kernel_size': (3, 1), 'padding': (1, 0)}
        wide = {'kernel_size': (1, 3), 'padding': (0, 1)}
        self.layers = nn.Sequential(
            ConvModule(channels, channels, **tall),
            ConvModule(channels, channels, norm_cfg=norm_cfg, **wide),
            ConvModule(channels, channels, **tall),
            ConvModule(
                channels, channels, norm_cfg=norm_cfg, act_cfg=None, **wide
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Refine, (B, C, H, W) -> (B, C, H, W)."""
        return functional.relu(x + self.layers(x))


class UpsampleBlock(BaseModule):
    """Double the size on a fine and on a coarse path and add both.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        norm_cfg: Config of all norms.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, norm_cfg: dict[str, Any]
    ) -> None:
        super().__init__()
        deconv = {'type': 'deconv', 'output_padding': 1}
        self.fine = nn.Sequential(
            ConvModule(
                in_channels,
                out_channels,
                3,
                stride=2,
                padding=1,
                conv_cfg=deconv,
                norm_cfg=norm_cfg,
            ),
            NonBottleneck1d(out_channels, norm_cfg=norm_cfg),
            NonBottleneck1d(out_channels, norm_cfg=norm_cfg),
        )
        self.coarse = ConvModule(
            in_channels, out_channels, 1, norm_cfg=norm_cfg
        )

    def forward(self, x: Tensor) -> Tensor:
        """Double the size, (B, C, H, W) -> (B, C', 2 H, 2 W)."""
        coarse = functional.interpolate(
            self.coarse(x),
            scale_factor=2,
            mode='bilinear',
            align_corners=False,
        )
        return self.fine(x) + coarse


@MODELS.register_module()
class BilateralUpsampler(BaseModule):
    """RESA's decoder: three blocks that double the size, halve the channels.

    Args:
        in_channels: Channels of the input; the result has an eighth of them.
        norm_cfg: Config of all norms.
        init_cfg: See mmengine's BaseModule.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        norm_cfg = norm_cfg or {'type': 'BN'}
        widths = [in_channels // 2**i for i in range(4)]
        self.blocks = nn.Sequential(
            *(
                UpsampleBlock(widths[i], widths[i + 1], norm_cfg=norm_cfg)
                for i in range(3)
            )
        )
        self.out_channels = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Upsample, (B, C, H, W) -> (B, C / 8, 8 H, 8 W)."""
        return self.blocks(x)
