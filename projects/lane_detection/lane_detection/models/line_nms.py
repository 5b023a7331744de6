"""Distances between lanes given at common rows, and their suppression."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ['line_distances', 'line_nms']

# Limit for keeping lanes one at a time.
MAX_ROUNDS = 64


def line_distances(
    xs: Tensor,
    other_xs: Tensor,
    *,
    valid: Tensor,
    other_valid: Tensor,
    chunk: int = 256,
) -> Tensor:
    """Return the mean |dx| over the rows that two lanes share.

    Args:
        xs: (N, R), x of each lane at each row, any unit.
        other_xs: (M, R).
        valid: (N, R), bool, rows that the lane has.
        other_valid: (M, R).
        chunk: Lanes of ``xs`` that are compared at a time, which bounds the
            memory to chunk * M * R numbers.

    Returns:
        (N, M); infinite for lanes without a common row.
    """
    rows = [
        _distances(part, other_xs, part_valid, other_valid)
        for part, part_valid in zip(
            xs.split(chunk), valid.split(chunk), strict=True
        )
    ]
    return torch.cat(rows) if rows else xs.new_zeros(0, len(other_xs))


def line_nms(
    xs: Tensor,
    scores: Tensor,
    *,
    valid: Tensor,
    threshold: float,
    max_keep: int | None = None,
) -> Tensor:
    """Suppress lanes close to better ones, greedily.

    A kept lane suppresses a worse one if they share rows and differ by less
    than ``threshold`` on average over these rows. With a low limit, each
    round compares one kept lane with all others, so the cost depends on the
    kept lanes. Otherwise all pairs are compared at once and the rest is done
    on the CPU, since a round for each of a thousand lanes would wait for the
    device a thousand times.

    Args:
        xs: (N, R), x of each lane at each row, in pixels.
        scores: (N,); with equal scores, the first wins.
        valid: (N, R), bool, rows that the lane has.
        threshold: Distance in pixels.
        max_keep: Maximum number of kept lanes; None keeps all survivors.

    Returns:
        Indices of the kept lanes, best first, (K,).
    """
    order = scores.argsort(descending=True, stable=True)
    limit = len(order) if max_keep is None else max_keep
    if limit > MAX_ROUNDS:
        near = (
            line_distances(
                xs[order],
                xs[order],
                valid=valid[order],
                other_valid=valid[order],
            )
            < threshold
        )
        return order[_survivors(near)[:limit]]
    kept: list[Tensor] = []
    while len(order) and len(kept) < limit:
        best = order[:1]
        kept.append(best)
        rest = order[1:]
        distance = _distances(xs[rest], xs[best], valid[rest], valid[best])[
            :, 0
        ]
        order = rest[distance >= threshold]
    return torch.cat(kept) if kept else order


def _survivors(near: Tensor) -> Tensor:
    """Return the lanes without a better survivor nearby, (N, N) -> (K,)."""
    pairs = near.cpu().numpy()
    alive = np.ones(len(pairs), dtype=bool)
    for i in range(len(pairs)):
        if alive[i]:
            alive[i + 1 :] &= ~pairs[i, i + 1 :]
    return torch.from_numpy(np.flatnonzero(alive)).to(near.device)


def _distances(
    xs: Tensor, other_xs: Tensor, valid: Tensor, other_valid: Tensor
) -> Tensor:
    common = valid[:, None] & other_valid  # N x M x R
    gap = (xs[:, None] - other_xs).abs().masked_fill(~common, 0)
    count = common.sum(-1)
    mean = gap.sum(-1) / count.clamp(min=1)
    return mean.masked_fill(count == 0, float('inf'))
