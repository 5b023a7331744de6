"""Observers for quantizers with one grid per head or per channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from taskptq.core.observers import Observer
from taskptq.core.spec import QuantSpec

# Attention operands are (B, H, N, C).
HEAD_AXIS = 1


class HeadObserver(Observer):
    """One per-tensor observer for each head.

    A single observer with a channel axis wouldn't do: such observers are
    made for weights, and histograms then keep only the last tensor.

    Args:
        spec: Grid whose channel axis is the heads.
        num_heads: Heads.
        make: Makes the observer of one head from its per-tensor spec.
    """

    reductions: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        spec: QuantSpec,
        *,
        num_heads: int,
        make: Callable[[QuantSpec], Observer],
    ) -> None:
        super().__init__(spec)
        per_tensor = replace(spec, ch_axis=None)
        self.heads = nn.ModuleList(make(per_tensor) for _ in range(num_heads))

    def parts(self) -> Sequence[Observer]:
        """Return the observers of the heads."""
        return [head for head in self.heads if isinstance(head, Observer)]

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add one tensor, (B, H, N, C), to the statistics.

        Raises:
            ValueError: If the number of heads differs, or the tensor holds
                NaN or infinity.
        """
        self.check(x)
        for head, part in zip(self.parts(), x.unbind(HEAD_AXIS), strict=True):
            head.observe(part)

    def check(self, x: Tensor) -> None:
        """Refuse a tensor that is not (B, H, N, C) with these heads."""
        if x.dim() != 4 or x.shape[HEAD_AXIS] != len(self.heads):
            raise ValueError(
                f'per_head=True reads (B, {len(self.heads)}, N, C), got the '
                f'shape {tuple(x.shape)}: set per_head=False for this layer'
            )

    @property
    def observed(self) -> bool:
        """Whether every head has seen values."""
        return all(head.observed for head in self.parts())

    @property
    def signed(self) -> bool:
        """The spec's choice of grid, else signed if any head's is."""
        return any(head.signed for head in self.parts())

    def compute_range(self) -> tuple[Tensor, Tensor]:
        """Return (min_val, max_val) of each head, (H,)."""
        # Heads must search on the signedness that they will share.
        spec = replace(self.spec, ch_axis=None, signed=self.signed)
        heads = self.parts()
        for head in heads:
            head.spec = spec
        ranges = type(heads[0]).compute_ranges(heads)
        low, high = (
            torch.cat([ends[i].reshape(1) for ends in ranges])
            for i in range(2)
        )
        return low, high


class ChannelObserver(HeadObserver):
    """One observer per input channel of a depthwise convolution.

    Args:
        spec: Grid, with its axis at the channels.
        num_channels: Channels.
        make: Makes the observer of one channel, per tensor, from its spec.
    """

    def __init__(
        self,
        spec: QuantSpec,
        *,
        num_channels: int,
        make: Callable[[QuantSpec], Observer],
    ) -> None:
        super().__init__(spec, num_heads=num_channels, make=make)

    def check(self, x: Tensor) -> None:
        """Refuse a tensor that is not (B, C, ...) with these channels."""
        if x.dim() < 3 or x.shape[HEAD_AXIS] != len(self.heads):
            raise ValueError(
                f'per_channel=True reads (B, {len(self.heads)}, H, W) or (B, '
                f'{len(self.heads)}, L), got the shape {tuple(x.shape)}: set '
                'per_channel=False for the activation of this layer'
            )
