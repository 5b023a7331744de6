"""Reshape outputs of heads that localize over a grid, points last."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ['box_probability', 'num_points', 'split_map', 'split_regions']


def num_points(head: Any) -> int | None:
    """Return the number of logits per coordinate, or None without a grid.

    Args:
        head: Grid head, or mmdet's GFLHead, whose grid is 0 to ``reg_max``.
    """
    grid = getattr(head, 'box_grid', None)
    if grid is not None:
        return int(grid.num_points)
    if hasattr(head, 'integral') and hasattr(head, 'reg_max'):
        return int(head.reg_max) + 1
    return None


def split_map(output: Tensor, *, points: int) -> Tensor:
    """Return the distributions of a map.

    Args:
        output: (N, A * 4 * points, H, W), any strides.
        points: Logits of one coordinate.

    Returns:
        (N, A, H, W, 4, points).
    """
    split = output.unflatten(1, (-1, 4, points))
    return split.permute(0, 1, 4, 5, 2, 3)


def split_regions(output: Tensor, *, points: int) -> Tensor:
    """Return the distributions of regions.

    Args:
        output: (R, K * 4 * points), K is 1 or the number of classes.
        points: Logits of one coordinate.

    Returns:
        (R, K, 4, points).
    """
    # -1 is ambiguous without rows.
    return output.unflatten(1, (output.shape[1] // (4 * points), 4, points))


def box_probability(probability: Tensor, *, num_outputs: int) -> Tensor:
    """Repeat a probability for all numbers of a box.

    Args:
        probability: (M, A, ...) of priors or classes.
        num_outputs: Channels of the box head, a multiple of A.

    Returns:
        (M, num_outputs, ...).
    """
    count = num_outputs // probability.shape[1]
    return probability.repeat_interleave(count, dim=1)
