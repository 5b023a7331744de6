"""Weights too small to matter, which make a CPU slow."""

from __future__ import annotations

import logging

import torch
from torch import nn

__all__ = ['flush_subnormal']

logger = logging.getLogger('taskptq')

TINY = torch.finfo(torch.float32).tiny


@torch.no_grad()
def flush_subnormal(model: nn.Module) -> int:
    """Set subnormal parameters to zero, in place.

    Weight decay drives the weights of dead channels below the smallest
    normal float32, 1.2e-38. A CPU multiplies such values in microcode (a
    forward pass of CGNet, half of whose trained weights are subnormal, takes
    twenty times as long), and their products vanish beside any other.

    Args:
        model: Any.

    Returns:
        How many values changed.
    """
    changed = total = 0
    for parameter in model.parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        values = parameter.detach()
        total += values.numel()
        small = values.abs() < TINY
        # Exact zeros are rare: most parameters need no further pass.
        if not small.any():
            continue
        small &= values != 0
        if count := int(small.sum()):
            values.masked_fill_(small, 0.0)
            changed += count
    if changed:
        logger.info(
            '%d of %d weights are subnormal (below %.2g), which is slow on a '
            'CPU and changes nothing: set to 0',
            changed,
            total,
            TINY,
        )
    return changed
