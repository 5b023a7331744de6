"""Masks with an exact number of zeros."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def exact_count(rate: float, *, total: int) -> int:
    """Return how many of ``total`` weights a rate removes: the nearest count.

    >>> exact_count(0.7, total=44)
    31
    """
    return min(total, round(rate * total))


@torch.no_grad()
def remove_lowest(scores: Tensor, count: int) -> Tensor:
    """Return a mask without the elements of lowest score.

    Of equal scores at the cut the first in memory go, so that the count is
    exact.

    >>> remove_lowest(torch.tensor([0.3, 0.1, 0.1, 0.5]), 2)
    tensor([ True, False, False,  True])
    >>> remove_lowest(torch.tensor([0.1, 0.1, 0.1]), 2)
    tensor([False, False,  True])

    Args:
        scores: Any shape, not NaN.
        count: How many to remove, 0 to all.

    Returns:
        bool, shaped like ``scores``; True remains.

    Raises:
        ValueError: If there are fewer elements than ``count``.
    """
    flat = scores.reshape(-1)
    if not 0 <= count <= flat.numel():
        raise ValueError(
            f'count={count} of {flat.numel()} weights cannot be removed'
        )
    keep = torch.ones_like(flat, dtype=torch.bool)
    if count:
        cut = flat.kthvalue(count).values
        below = flat < cut
        keep &= ~below
        ties = (flat == cut).nonzero()[:, 0]
        keep[ties[: count - int(below.sum())]] = False
    return keep.reshape(scores.shape)


def global_masks(scores: Sequence[Tensor], count: int) -> list[Tensor]:
    """Remove the lowest scores of all layers together.

    Args:
        scores: One tensor for each layer, comparable between layers.
        count: How many elements to remove in all.

    Returns:
        A mask for each layer.
    """
    keep = remove_lowest(torch.cat([s.reshape(-1) for s in scores]), count)
    parts = keep.split([s.numel() for s in scores])
    return [
        part.reshape(s.shape) for part, s in zip(parts, scores, strict=True)
    ]


@torch.no_grad()
def pattern_mask(
    scores: Tensor, *, kept: int, of: int, out_axis: int = 0
) -> Tensor | None:
    """Keep the N largest of each M neighbours along the input channels.

    Groups lie within one output channel and one place of the kernel, as
    sparse matrix units read them.

    >>> pattern_mask(torch.tensor([[3.0, 1.0, 2.0, 0.0]]), kept=2, of=4)
    tensor([[ True, False,  True, False]])

    Args:
        scores: A weight's scores, (C_out, C_in) or (C_out, C_in, kH, kW).
        kept: N.
        of: M.
        out_axis: Axis of output channels, 0 or 1.

    Returns:
        Mask shaped like ``scores``; None if M does not divide the input
        channels.
    """
    moved = scores.transpose(0, out_axis).movedim(1, -1)
    if moved.shape[-1] % of:
        return None
    groups = moved.reshape(-1, of)
    # Of equal ones the first remain.
    order = groups.argsort(dim=1, descending=True, stable=True)
    keep = torch.zeros_like(groups, dtype=torch.bool)
    keep.scatter_(1, order[:, :kept], True)
    back = keep.reshape(moved.shape).movedim(-1, 1)
    return back.transpose(0, out_axis).contiguous()
