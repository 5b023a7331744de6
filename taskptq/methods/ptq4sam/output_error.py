"""Softmax observer that measures the error of the attention's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from taskptq.core.observers import NORM_P, Observer
from taskptq.core.search import minimize_bounded
from taskptq.core.settings import Choice, Flag, Items, Whole
from taskptq.core.spec import QuantSpec
from taskptq.methods.ptq4sam.granularity import (
    TAUS,
    UNIFORM,
    Granularity,
    OutputErrors,
    Piece,
    search_granularity,
)
from taskptq.registry import OBSERVERS

TAUS_RULE = Items(
    of=Choice(choices=(UNIFORM, *TAUS)),
    what='a list of granularities out of 0, 1, 2 and 4',
    least=1,
    most=4,
)


@OBSERVERS.register_module()
class AttentionOutputObserver(Observer):
    """Keep rows of A with their values V, to compare A_hat V with A V.

    Each call contributes whole rows (all M keys) of all heads from some of
    its attention maps, and some channels of their values, evenly spread and
    shifted from call to call. Beyond ``max_elements`` kept numbers, every
    second call is dropped, including future ones. Ranks divide this budget
    and concatenate their samples, so all of them search the same rows.

    Without a value (deformable attention) the error is that of the softmax
    itself, ||A_hat - A||_p, and never per head.

    Yields tau and scale for PowerOfTwoQuantizer, or the clipping range of
    least error for a uniform quantizer.

    Args:
        spec: Grid.
        norm_p: The p of the norm.
        taus: Granularities to choose from: 1, 2, 4, and 0 for a uniform
            grid.
        per_head: Use one tau and scale per head instead of per tensor.
        rows: Most rows per map and call.
        channels: Most channels of a value per call.
        maps: Most maps (images, windows) per head and call.
        max_elements: Most numbers kept (four bytes each).

    Raises:
        ValueError: If a value is invalid.
    """

    points = ('softmax',)
    head_quantizer = 'PowerOfTwoQuantizer'
    wants_value = True
    reductions: ClassVar[dict[str, str]] = {
        **Observer.reductions,
        'attention_rows': 'gather',
        'value_columns': 'gather',
        'shapes': 'gather',
    }
    attention_rows: Tensor
    value_columns: Tensor
    shapes: Tensor

    def __init__(
        self,
        spec: QuantSpec,
        *,
        norm_p: float = 2.4,
        taus: Sequence[int] = TAUS,
        per_head: bool = False,
        rows: int = 16,
        channels: int = 16,
        maps: int = 4,
        max_elements: int = 1 << 23,
    ) -> None:
        super().__init__(spec)
        self.norm_p = NORM_P.read(norm_p, name='norm_p')
        self.taus: tuple[int, ...] = TAUS_RULE.read(taus, name='taus')
        self.per_head = Flag().read(per_head, name='per_head')
        count = Whole(low=1, high=1 << 16)
        self.rows = count.read(rows, name='rows')
        self.channels = count.read(channels, name='channels')
        self.maps = count.read(maps, name='maps')
        self.max_elements = Whole(low=1, high=1 << 30).read(
            max_elements, name='max_elements'
        )
        self.every = 1
        self._value: Tensor | None = None
        for name in ('attention_rows', 'value_columns'):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.register_buffer(
            'shapes', torch.empty(0, dtype=torch.int64), persistent=False
        )

    def expect_value(self, value: Tensor) -> None:
        """Receive the float value, (..., H, M, D), of the next attention."""
        self._value = value.detach()

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add attention weights, (..., H, N, M), to the statistics.

        Raises:
            ValueError: If they hold NaN or infinity.
        """
        try:
            super().observe(x)
            if x.numel() and (self.num_batches - 1) % self.every == 0:
                self._keep(x.detach(), self._value)
        finally:
            self._value = None

    def rows_of(self, x: Tensor) -> Tensor:
        """Return one row per head, or one row."""
        if self.per_head and self._value is not None:
            return x.movedim(-3, 0).flatten(1)
        return x.reshape(1, -1)

    def update(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Widen the range, (H,) or (1,)."""
        self._extend(low, high)

    def search(self) -> Granularity:
        """Choose tau and scale for PowerOfTwoQuantizer."""
        return search_granularity(
            self._errors(), max_val=self.max_val, taus=self.taus
        )

    def compute_range(self) -> tuple[Tensor, Tensor]:
        """Return (0, best maximum), each (1,), for a uniform grid.

        Raises:
            ValueError: If ``per_head`` is set.
        """
        if self.per_head:
            raise ValueError(
                'per_head=True needs a softmax of type PowerOfTwoQuantizer: '
                'a uniform grid has one scale per tensor'
            )
        high, _ = minimize_bounded(
            self._errors().uniform,
            low=0.01 * self.max_val,
            high=self.max_val,
        )
        return torch.zeros_like(high), high

    def pieces(self) -> list[Piece]:
        """Return the kept sample, one piece per call."""
        shapes = self.shapes.reshape(-1, 5).tolist()
        maps = self.attention_rows.split(
            [h * count * n * m for h, count, n, m, _ in shapes]
        )
        values = self.value_columns.split(
            [h * count * m * d for h, count, _, m, d in shapes]
        )
        return [
            (
                attention.view(h, count, n, m),
                value.view(h, count, m, d) if d else None,
            )
            for attention, value, (h, count, n, m, d) in zip(
                maps, values, shapes, strict=True
            )
        ]

    def share_budget(self, num_ranks: int) -> None:
        """Drop calls to fit this rank's share of ``max_elements``."""
        self.limit(self.max_elements // num_ranks)

    def limit(self, max_elements: int) -> None:
        """Drop every second call until ``max_elements`` is met.

        At least one call stays.
        """
        pieces = self.pieces()
        before = len(pieces)
        while _total(pieces) > max_elements and len(pieces) > 1:
            pieces = pieces[::2]
            self.every *= 2
        if len(pieces) < before:
            self._store(pieces)

    def _errors(self) -> OutputErrors:
        return OutputErrors(
            self.pieces(),
            per_head=self.max_val.numel() > 1,
            num_levels=self.spec.num_levels,
            norm_p=self.norm_p,
        )

    def _keep(self, attention: Tensor, value: Tensor | None) -> None:
        call = self.num_batches - 1
        if value is None:
            flat = attention.reshape(1, 1, -1, attention.shape[-1])
            count = self.maps * self.rows
            rows = _spread(flat.shape[2], count, call, like=flat)
            piece: Piece = (flat[:, :, rows].float(), None)
        else:
            piece = self._pick(attention, value, call)
        self._store([*self.pieces(), piece])
        self.limit(self.max_elements)

    def _pick(self, attention: Tensor, value: Tensor, call: int) -> Piece:
        """Pick maps, rows and channels; at most an eighth of the budget."""
        attention = attention.reshape(-1, *attention.shape[-3:])
        value = value.reshape(-1, *value.shape[-3:])  # L x H x M x D
        heads, num_rows, keys = attention.shape[1:]
        rows = min(self.rows, num_rows)
        channels = min(self.channels, value.shape[-1])
        quota = self.max_elements // (8 * heads * keys)
        while rows + channels > max(2, quota):
            rows, channels = (rows + 1) // 2, (channels + 1) // 2
        maps = min(self.maps, max(1, quota // (rows + channels)))
        index = _spread(attention.shape[0], maps, call, like=attention)
        row = _spread(num_rows, rows, call, like=attention)
        channel = _spread(value.shape[-1], channels, call, like=value)
        return (
            attention[index][:, :, row].transpose(0, 1).float(),
            value[index][..., channel].transpose(0, 1).float(),
        )

    def _store(self, pieces: Sequence[Piece]) -> None:
        self.attention_rows = torch.cat([a.reshape(-1) for a, _ in pieces])
        self.value_columns = torch.cat(
            [a.new_empty(0) if v is None else v.reshape(-1) for a, v in pieces]
        )
        self.shapes = torch.tensor(
            [[*a.shape, 0 if v is None else v.shape[-1]] for a, v in pieces],
            dtype=torch.int64,
            device=self.attention_rows.device,
        ).reshape(-1)


def _spread(size: int, count: int, offset: int, *, like: Tensor) -> Tensor:
    """Return ``count`` indices, evenly spread over ``size``, shifted."""
    count = min(count, size)
    index = torch.arange(count, device=like.device) * size // count
    return (index + offset) % size


def _total(pieces: Sequence[Piece]) -> int:
    return sum(a.numel() + (0 if v is None else v.numel()) for a, v in pieces)
