"""What a reconstruction needs to know of the other ranks."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized()


def own_rank() -> int:
    """Return this process' number among the ranks, 0 without others."""
    return dist.get_rank() if is_distributed() else 0


def num_ranks() -> int:
    """Return the number of ranks, 1 without others."""
    return dist.get_world_size() if is_distributed() else 1


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean over ranks; the value itself without them."""
    if is_distributed():
        value = value.clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value


def gathered(value: Any) -> list[Any]:
    """Return the values of all ranks, the own one without ranks."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
