"""Small helpers for distributed runs that also work without one."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group is initialized."""
    return dist.is_available() and dist.is_initialized()


def own_rank() -> int:
    """Return this process's rank, 0 outside distributed runs."""
    return dist.get_rank() if is_distributed() else 0


def num_ranks() -> int:
    """Return the number of ranks, 1 outside distributed runs."""
    return dist.get_world_size() if is_distributed() else 1


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a tensor over ranks."""
    if is_distributed():
        value = value.clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value


def gathered(value: Any) -> list[Any]:
    """Return the values of all ranks, in rank order."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
