"""Peaks, conditional maps and columns of CondLaneNet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    'dynamic_maps',
    'expected_column',
    'heatmap_peaks',
    'with_coordinates',
]


def heatmap_peaks(heatmap: Tensor, *, count: int) -> Tensor:
    """Return the highest local maxima.

    Args:
        heatmap: (B, 1, h, w), any real numbers.
        count: K. With fewer peaks, other cells follow.

    Returns:
        Flat cells, highest first, (B, K).
    """
    highest = F.max_pool2d(heatmap, 3, stride=1, padding=1)
    is_peak = (highest == heatmap).flatten(1)
    values = heatmap.flatten(1)
    order = values.argsort(dim=1, descending=True, stable=True)
    peaks = is_peak.gather(1, order).int()
    first = peaks.argsort(dim=1, descending=True, stable=True)
    return order.gather(1, first)[:, :count]


def dynamic_maps(features: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Apply each seed's two 1x1 convolutions.

    Args:
        features: (B, C, H, W), with coordinates.
        params: (B, K, 2 (C + 1)): weights of mask and reg, then their biases.

    Returns:
        ``mask`` and ``reg``, (B, K, H, W).
    """
    channels = features.shape[1]
    weights = params[..., : 2 * channels].unflatten(-1, (2, channels))
    bias = params[..., 2 * channels :, None, None]  # B x K x 2 x 1 x 1
    maps = weights.flatten(1, 2) @ features.flatten(2)  # B x 2K x HW
    maps = maps.unflatten(1, (params.shape[1], 2))
    maps = maps.unflatten(-1, features.shape[-2:])
    maps = maps + bias
    return maps[:, :, 0] - 2.19, maps[:, :, 1]


def with_coordinates(x: Tensor) -> Tensor:
    """Append row and column, from -1 to 1, (B, C, H, W) -> (B, C + 2, H, W).

    The published code tries to normalize them, but its slice has no effect.
    """
    height, width = x.shape[-2:]
    rows = torch.linspace(-1, 1, height, device=x.device, dtype=x.dtype)
    columns = torch.linspace(-1, 1, width, device=x.device, dtype=x.dtype)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing='ij'))
    return torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], dim=1)


def expected_column(mask: Tensor) -> Tensor:
    """Return the expectation of the column in each row, (..., H)."""
    columns = torch.arange(
        mask.shape[-1], device=mask.device, dtype=mask.dtype
    )
    return (mask.softmax(-1) * columns).sum(-1)
