"""Run a model so that its outputs compare with the float model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from taskptq.methods.output_error.output_loss import OutputLoss, group_of

__all__ = ['OutputLoss', 'group_of', 'run_like']

Heads = Mapping[str, Tensor]


def run_like(
    adapter: Any, model: nn.Module, batch: Any, *, heads: Heads
) -> dict[str, Tensor]:
    """Run a model on the instances that the float model selected, if any."""
    forward_like = getattr(adapter, 'forward_like', None)
    if forward_like is None:
        return dict(adapter.forward_heads(model, batch))
    return dict(forward_like(model, batch, heads=heads))
