"""GANet's lane-aware feature aggregation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

__all__ = ['LaneAggregation', 'aggregation_loss']


class LaneAggregation(BaseModule):
    """Gather features at points that each cell predicts on its lane.

    This is a deformable convolution along one dimension, implemented as a
    bilinear look-up and a 1x1 convolution. It thus needs no compiled operator
    and has the weights of an ordinary convolution.

    Args:
        channels: Channels of input and output.
        hidden_channels: Channels of the preceding convolutions.
        num_points: Points, M.
        offset_gradient: Factor on the gradient from the offset branch to the
            features.
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden_channels: int = 256,
        num_points: int = 7,
        offset_gradient: float = 0.1,
    ) -> None:
        super().__init__()
        self.offset_gradient = offset_gradient
        self.offset_convs = _convs(channels, hidden_channels)
        self.conv_offset = nn.Sequential(
            ConvModule(hidden_channels, channels, 3, padding=1),
            nn.Conv2d(channels, 2 * num_points, 1),
        )
        self.feature_convs = _convs(channels, hidden_channels)
        self.mix = ConvModule(hidden_channels * num_points, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Aggregate.

        Args:
            x: (B, C, H, W).

        Returns:
            Features, (B, C, H, W), and the offsets of the points from their
            cell, dx and dy in cells, (B, M, 2, H, W).
        """
        damped = x * self.offset_gradient + x.detach() * (
            1 - self.offset_gradient
        )
        offsets = self.conv_offset(self.offset_convs(damped))
        offsets = offsets.unflatten(1, (-1, 2))
        gathered = gather_points(self.feature_convs(x), offsets)
        return self.mix(gathered), offsets


def gather_points(x: Tensor, offsets: Tensor) -> Tensor:
    """Look up features bilinearly, with zeros outside the map.

    Args:
        x: (B, C, H, W).
        offsets: (B, M, 2, H, W), dx and dy in cells.

    Returns:
        (B, M * C, H, W).
    """
    batch, count, _, height, width = offsets.shape
    points = offsets + cell_grid(height, width, device=x.device)
    size = points.new_tensor([width, height])
    grid = (points.movedim(2, -1) * 2 + 1) / size - 1  # B x M x H x W x 2
    found = F.grid_sample(
        x, grid.flatten(1, 2), padding_mode='zeros', align_corners=False
    )
    found = found.unflatten(2, (count, height))  # B x C x M x H x W
    return found.transpose(1, 2).reshape(batch, -1, height, width)


def cell_grid(
    height: int, width: int, *, device: torch.device | None = None
) -> Tensor:
    """Return column and row of each cell, (2, H, W)."""
    rows = torch.arange(height, device=device, dtype=torch.float32)
    columns = torch.arange(width, device=device, dtype=torch.float32)
    y, x = torch.meshgrid(rows, columns, indexing='ij')
    return torch.stack([x, y])


def _convs(channels: int, hidden: int) -> nn.Sequential:
    widths = [channels, hidden, hidden]
    return nn.Sequential(
        *[ConvModule(width, hidden, 3, padding=1) for width in widths]
    )


def aggregation_loss(
    offsets: Tensor,
    *,
    cells: Sequence[np.ndarray],
    samples: Sequence[np.ndarray],
    beta: float = 1 / 9,
) -> Tensor:
    """Pull the points of a lane's cells to that lane.

    The M points of a cell are assigned to different samples of its lane, at
    the smallest sum of squared distances.

    Args:
        offsets: Offsets of one image, (M, 2, H, W).
        cells: Column and row of each lane's cells, (n, 2), int.
        samples: Points of each lane, (S, 2), x and y in cells, S >= M.
        beta: Parameter of the smooth L1 loss.

    Returns:
        Mean over all points, a scalar.
    """
    found, wanted = [], []
    for lane_cells, lane in zip(cells, samples, strict=True):
        where = torch.as_tensor(lane_cells, device=offsets.device)
        local = offsets[:, :, where[:, 1], where[:, 0]]  # M x 2 x n
        points = local.permute(2, 0, 1) + where[:, None].to(local)
        found.append(points)
        goal = torch.as_tensor(lane, device=offsets.device).to(local)
        wanted.append(_nearest_samples(points.detach(), goal))
    if not found:
        return offsets.sum() * 0
    return F.smooth_l1_loss(torch.cat(found), torch.cat(wanted), beta=beta)


def _nearest_samples(points: Tensor, lane: Tensor) -> Tensor:
    """Return the sample of each point, (n, M, 2)."""
    cost = torch.cdist(points, lane.expand(len(points), -1, -1)).square()
    chosen = [linear_sum_assignment(c)[1] for c in cost.cpu().numpy()]
    return lane[torch.as_tensor(np.stack(chosen), device=lane.device)]
