"""What a reconstruction needs to know of the other ranks."""
from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized()


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean over ranks; the value itself without them."""
    if is_distributed():
        value = value.clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value
