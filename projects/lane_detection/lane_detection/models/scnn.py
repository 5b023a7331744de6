"""SCNN: messages between the rows and columns of a feature map.

Architecture after Pan et al., "Spatial As Deep: Spatial CNN for Traffic Scene
Understanding", AAAI 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

__all__ = ['DIRECTIONS', 'SCNNNeck', 'SliceConv', 'direction_kernel']

DIRECTIONS = ('down', 'up', 'right', 'left')


def direction_kernel(direction: str, kernel_size: int) -> tuple[int, int]:
    """Return (height, width) of a kernel that lies across a direction.

    Raises:
        ValueError: If the direction is unknown or the size is even.
    """
    if direction not in DIRECTIONS:
        raise ValueError(
            f'direction={direction!r}: choose one of {", ".join(DIRECTIONS)}'
        )
    if kernel_size % 2 == 0:
        raise ValueError(
            f'kernel_size={kernel_size} must be odd, so that the map keeps '
            'its size'
        )
    if direction in ('down', 'up'):
        return 1, kernel_size
    return kernel_size, 1


class SliceConv(ConvModule):
    """One pass over a map, slice by slice, in one direction.

    ``x_i <- x_i + relu(conv(x_{i-1}))`` where ``x_{i-1}`` is already updated.
    All slices share one kernel. As a ConvModule it is one block for
    quantization: a conv that is called once per slice.

    Args:
        channels: Channels of the map, C.
        direction: Direction of the messages, one of ``DIRECTIONS``.
        kernel_size: Taps across the direction.
    """

    def __init__(
        self, channels: int, *, direction: str, kernel_size: int = 9
    ) -> None:
        kernel = direction_kernel(direction, kernel_size)
        super().__init__(
            channels,
            channels,
            kernel,
            padding=(kernel[0] // 2, kernel[1] // 2),
            bias=False,
            inplace=False,
        )
        self.direction = direction

    def init_weights(self) -> None:
        """Initialize with small weights, since the recurrence compounds them.

        Uniform in +-sqrt(2 / (5 * channels * taps)), as in the authors' code.
        """
        height, width = self.conv.kernel_size
        taps = self.conv.in_channels * height * width
        bound = (2 / (5 * taps)) ** 0.5
        nn.init.uniform_(self.conv.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Pass messages, (B, C, H, W) -> (B, C, H, W)."""
        axis = 2 if self.direction in ('down', 'up') else 3
        backward = self.direction in ('up', 'left')
        slices = list(x.split(1, dim=axis))
        if backward:
            slices.reverse()
        for i in range(1, len(slices)):
            message = super().forward(slices[i - 1])
            slices[i] = slices[i] + message
        if backward:
            slices.reverse()
        return torch.cat(slices, dim=axis)


@MODELS.register_module()
class SCNNNeck(BaseModule):
    """Reduce the channels, then pass messages in four directions.

    Args:
        in_channels: Channels of the input map.
        channels: Channels of the result.
        kernel_size: Taps of the message kernels.
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
        in_index: int = -1,
        norm_cfg: dict[str, Any] | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.in_index = in_index
        self.reduce = ConvModule(
            in_channels, channels, 1, norm_cfg=norm_cfg or {'type': 'BN'}
        )
        self.passes = nn.Sequential(
            *(
                SliceConv(
                    channels, direction=direction, kernel_size=kernel_size
                )
                for direction in DIRECTIONS
            )
        )

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor]:
        """Return one map, (B, channels, H, W)."""
        return (self.passes(self.reduce(feats[self.in_index])),)
