"""Products of gradients with rounding errors, in few passes over memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from taskptq.analysis.sensitivity.grids import AffineGrid, Rounder, as_grid
from taskptq.core.functional import reciprocal

__all__ = ['error_products']

# Values of a part: a few buffers of them stay in a core's cache.
PART = 1 << 17
# With fewer values of a channel side by side, calls cost more than passes.
LEAST_RUN = 64


def error_products(
    value: Tensor, gradient: Tensor, *, rounded: Rounder, rows: int
) -> Tensor:
    """Return ``g . (x_hat - x)`` of each row.

    Args:
        value: Tensor x, any shape.
        gradient: g, of the same shape.
        rounded: Returns x_hat.
        rows: Parts of the first axis that are summed apart; divides it.

    Returns:
        (rows,), float64, on the CPU.
    """
    value, gradient = value.detach(), gradient.detach().float()
    grid = as_grid(rounded)
    if grid is not None and not value.is_cuda and value.dtype == torch.float32:
        if grid.ch_axis is None:
            return _per_tensor(value, gradient, grid=grid, rows=rows)
        if grid.ch_axis == 1 and math.prod(value.shape[2:]) >= LEAST_RUN:
            return _per_channel(value, gradient, grid=grid, rows=rows)
    error = (rounded(value) - value).float().reshape(rows, -1)
    products = gradient.reshape(rows, -1) * error
    return products.sum(dim=1).double().cpu()


def _per_tensor(
    value: Tensor, gradient: Tensor, *, grid: AffineGrid, rows: int
) -> Tensor:
    """Take errors in steps, ``clamp(round(t)) - t`` with t = x / scale."""
    x, slope = value.reshape(rows, -1), gradient.reshape(rows, -1)
    shift = int(grid.zero_point)
    lowest, highest = grid.quant_min - shift, grid.quant_max - shift
    inverse = reciprocal(grid.scale)
    sums = torch.zeros(rows, dtype=torch.float64)
    for row, part in _parts(x):
        t = x[row, part] * inverse
        error = t.round().clamp_(lowest, highest).sub_(t)
        sums[row] += float(torch.dot(slope[row, part], error))
    return sums * float(grid.scale)


def _per_channel(
    value: Tensor, gradient: Tensor, *, grid: AffineGrid, rows: int
) -> Tensor:
    """Do the same with one scale for each index of axis 1."""
    x, slope = value.flatten(2), gradient.flatten(2)  # (B, C, N)
    inverse = grid.scale.reciprocal()[:, None]
    shift = grid.zero_point.to(x)[:, None]
    lowest, highest = grid.quant_min - shift, grid.quant_max - shift
    scale = grid.scale.double()
    sums = torch.zeros(rows, dtype=torch.float64)
    each = x.shape[0] // rows
    for number in range(x.shape[0]):
        t = x[number] * inverse
        error = t.round().clamp_(lowest, highest).sub_(t)
        dots = error.mul_(slope[number]).sum(dim=1).double()
        sums[number // each] += float(torch.dot(dots, scale))
    return sums


def _parts(x: Tensor) -> Iterator[tuple[int, slice]]:
    for row in range(x.shape[0]):
        for start in range(0, x.shape[1], PART):
            yield row, slice(start, start + PART)
