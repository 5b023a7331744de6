"""Inputs and targets of one unit: assembled, propagated, sampled."""
from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from taskptq.calibration.cache import ActivationCache
from taskptq.calibration.calibrate import calibration_mode
from taskptq.calibration.capture import Capturer, Plan, Source
from taskptq.calibration.tree import flatten, is_float, unflatten
from taskptq.core import float_only, quantizing
from taskptq.core.functional import random_drop

logger = logging.getLogger('taskptq')

Call = tuple[tuple[Any, ...], dict[str, Any]]


class UnitData:
    """Float and quantized inputs and float targets of one unit.

    Args:
        capturer: Source of captured tensors.
        index: The unit's place in execution order.
        cache: Where everything lies.
        rows_per_image: Most rows per image of a minibatch, for units whose
            rows are not images (regions of interest).
    """

    def __init__(
        self,
        capturer: Capturer,
        index: int,
        *,
        cache: ActivationCache,
        rows_per_image: int,
    ) -> None:
        self.capturer = capturer
        self.index = index
        self.plan: Plan = capturer.plans[index]
        self.cache = cache
        self.num_batches = len(capturer.batches)
        self.lengths = capturer.lengths
        self.rows_per_image = rows_per_image
        self._warned = False
        self._row_counts: list[int] | None = None

    def compute(self, stream: str, *, keep: Sequence[Source] | None) -> None:
        """Run the unit on a stream's inputs and store its outputs.

        Args:
            stream: 'float' or 'quant'.
            keep: Outputs to store; None stores all.
        """
        mode = float_only if stream == 'float' else quantizing
        module = self.plan.unit.module
        with calibration_mode(module), mode(module):
            for batch in range(self.num_batches):
                for call in range(len(self.plan.calls)):
                    args, kwargs = self._arguments(stream, call, batch)
                    leaves, _ = flatten(module(*args, **kwargs))
                    self._store(stream, call, batch, leaves, keep)

    def _store(
        self,
        stream: str,
        call: int,
        batch: int,
        leaves: list[Tensor],
        keep: Sequence[Source] | None,
    ) -> None:
        for place, leaf in enumerate(leaves):
            source = Source('out', self.index, call, place)
            if keep is None or source in keep:
                self.cache.put((stream, source, batch), leaf)

    def _arguments(self, stream: str, call: int, batch: int) -> Call:
        # One tensor per source: a module may ask whether key is query.
        tensors = {
            source: self.cache.get(self._key(stream, source, batch)).clone()
            for source in set(self.plan.calls[call])
        }
        leaves = [tensors[source] for source in self.plan.calls[call]]
        skeleton = self.capturer.skeletons[self.index, call, batch]
        args, kwargs = unflatten(leaves, skeleton)
        return args, kwargs

    def _key(self, stream: str, source: Source, batch: int) -> Hashable:
        """Key of a leaf; the float one where the streams cannot be paired."""
        key = (stream, source, batch)
        if stream == 'float':
            return key
        fallback = ('float', source, batch)
        if key not in self.cache:
            return fallback
        same = self.cache.shape(key) == self.cache.shape(fallback)
        if not same and not self._warned:
            self._warned = True
            logger.warning(
                'inputs of %s differ in shape between the float and the '
                'quantized model: the float ones are used where they do',
                self.plan.unit.name,
            )
        return key if same else fallback

    def prepare_sampling(self) -> None:
        """Find out whether single rows can be drawn; after ``compute``."""
        counts = [self._rows_of(batch) for batch in range(self.num_batches)]
        uniform = all(
            _is_same(self._signature(batch), self._signature(0))
            for batch in range(self.num_batches)
        )
        is_rows = uniform and all(count > 0 for count in counts)
        self._row_counts = counts if is_rows else None

    def _sources(self, call: int) -> list[Source]:
        outputs = [
            Source('out', self.index, call, place)
            for place in range(self.plan.num_outputs[call])
        ]
        return [*self.plan.calls[call], *outputs]

    def _rows_of(self, batch: int) -> int:
        """Independent rows of one batch; 0 if they cannot be taken apart."""
        counts, dims = set(), set()
        for call in range(len(self.plan.calls)):
            for source in self._sources(call):
                shape = self.cache.shape(('float', source, batch))
                counts.add(shape[0] if shape else 0)
                if source.side == 'in' or source.unit != self.index:
                    dims.add(len(shape))
        if len(counts) != 1:
            return 0
        count = counts.pop()
        # Rows are images, or (B, C, H, W) items such as regions of interest;
        # the first axis of a token tensor may as well be the sequence.
        return count if count == self.lengths[batch] or dims == {4} else 0

    def _signature(self, batch: int) -> list[Any]:
        """What must agree for rows of two batches to be stacked."""
        return [
            (
                self.capturer.skeletons[self.index, call, batch],
                [
                    self.cache.shape(('float', source, batch))[1:]
                    for source in self._sources(call)
                ],
            )
            for call in range(len(self.plan.calls))
        ]

    def sample(
        self, batch_size: int, *, drop_prob: float = 0.0
    ) -> tuple[list[tuple[Call, list[Tensor]]], tuple[int, ...]]:
        """Draw a minibatch with torch's global generator.

        Args:
            batch_size: Images, where rows can be drawn; else one whole
                calibration batch is.
            drop_prob: Share of input elements that keep their float value.

        Returns:
            For each call its arguments and float targets; and the indices
            of the images, where rows are images.
        """
        if self._row_counts is None:
            batch = int(torch.randint(self.num_batches, ()))
            picks: list[tuple[int, list[int] | None]] = [(batch, None)]
            first = sum(self.lengths[:batch])
            ids = tuple(range(first, first + self.lengths[batch]))
        else:
            picks, ids = self._pick_rows(batch_size)
        return [
            self._gather(call, picks, drop_prob)
            for call in range(len(self.plan.calls))
        ], ids

    def _pick_rows(
        self, batch_size: int
    ) -> tuple[list[tuple[int, list[int] | None]], tuple[int, ...]]:
        assert self._row_counts is not None
        counts = self._row_counts
        total, images = sum(counts), sum(self.lengths)
        per_image = min(total // max(images, 1), self.rows_per_image)
        size = min(total, batch_size * max(1, per_image))
        chosen = torch.randperm(total)[:size].sort().values.tolist()
        picks: list[tuple[int, list[int] | None]] = []
        start = 0
        for batch, count in enumerate(counts):
            rows = [row - start for row in chosen if 0 <= row - start < count]
            if rows:
                picks.append((batch, rows))
            start += count
        return picks, tuple(chosen) if counts == self.lengths else ()

    def _gather(
        self,
        call: int,
        picks: list[tuple[int, list[int] | None]],
        drop_prob: float,
    ) -> tuple[Call, list[Tensor]]:
        mixed: dict[Source, Tensor] = {}
        for source in dict.fromkeys(self.plan.calls[call]):
            mixed[source] = self._rows('quant', source, picks)
            if drop_prob > 0 and is_float(mixed[source]):
                mixed[source] = random_drop(
                    mixed[source],
                    self._rows('float', source, picks),
                    drop_prob=drop_prob,
                )
        targets = [
            self._rows('float', Source('out', self.index, call, place), picks)
            for place in range(self.plan.num_outputs[call])
        ]
        skeleton = self.capturer.skeletons[self.index, call, picks[0][0]]
        leaves = [mixed[source] for source in self.plan.calls[call]]
        args, kwargs = unflatten(leaves, skeleton)
        return (args, kwargs), targets

    def _rows(
        self,
        stream: str,
        source: Source,
        picks: list[tuple[int, list[int] | None]],
    ) -> Tensor:
        parts = []
        for batch, rows in picks:
            key = self._key(stream, source, batch)
            parts.append(
                self.cache.get(key).clone()
                if rows is None
                else self.cache.rows(key, rows)
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _is_same(one: Any, two: Any) -> bool:
    """Whether two trees are equal; what cannot be compared is not."""
    try:
        return bool(one == two)
    except (ValueError, RuntimeError):  # arrays have no single truth value
        return False
