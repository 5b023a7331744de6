"""Weights of any layer as (groups, rows, K), rows being output channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def groups_of(layer: nn.Module) -> int:
    """Return the groups of a convolution, 1 for other layers."""
    is_conv = isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    return int(layer.groups) if is_conv else 1  # type: ignore[arg-type]


def to_matrix(weight: Tensor, *, groups: int, transposed: bool) -> Tensor:
    """View a weight as (groups, rows, K), rows being output channels."""
    if not transposed:
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    # (groups C_in) x C_out x kH x kW -> groups x C_out x (C_in kH kW)
    parts = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return parts.flatten(2)


def mask_matrix(
    mask: Tensor | None, *, groups: int, transposed: bool
) -> Tensor | None:
    """View the mask of a weight like :func:`to_matrix`; None stays None."""
    if mask is None:
        return None
    return to_matrix(mask, groups=groups, transposed=transposed)


def from_matrix(
    matrix: Tensor, *, shape: torch.Size, transposed: bool
) -> Tensor:
    """Undo :func:`to_matrix`."""
    if not transposed:
        return matrix.reshape(shape)
    parts = matrix.reshape(*matrix.shape[:2], -1, *shape[2:])
    return parts.transpose(1, 2).reshape(shape)
