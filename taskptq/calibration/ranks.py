"""What a reconstruction needs to know of the other ranks."""
from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized()


def is_main_rank() -> bool:
    """Whether this is the first rank, or the only process."""
    return not is_distributed() or dist.get_rank() == 0


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
