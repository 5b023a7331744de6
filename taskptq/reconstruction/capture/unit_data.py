"""Compute and sample the inputs and targets of one unit."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import float_only, quantizing
from taskptq.core.drop import random_drop
from taskptq.hosts.class_lookup import is_a
from taskptq.hosts.registry import ROW_MODULES
from taskptq.reconstruction.capture.cache import ActivationCache
from taskptq.reconstruction.capture.capture import Capturer
from taskptq.reconstruction.capture.nesting import (
    counts_things,
    flatten,
    is_float,
    unflatten,
)
from taskptq.reconstruction.capture.provenance import Plan, Source
from taskptq.reconstruction.capture.row_sampling import (
    Pick,
    Rows,
    add_to_group,
    draw_group,
    first_places,
    is_same,
    locate_rows,
)
from taskptq.reconstruction.layout import needs_plain_memory

logger = logging.getLogger('taskptq')

Call = tuple[tuple[Any, ...], dict[str, Any]]


class UnitData:
    """Float and quantized inputs and float targets of one unit.

    A minibatch is drawn in one of four ways:

    - If every batch has the same calls and their rows are images (or items
      such as regions), the same rows of each call.
    - If rows are independent but the number of calls varies (one per image
      or chunk of prompts), rows from all calls of one kind.
    - If only shapes differ between batches, because images differ in size,
      rows from batches of the same shapes.
    - Otherwise one whole calibration batch.

    Args:
        capturer: Source of captured tensors.
        index: The unit's place in execution order.
        cache: Cache with all tensors.
        rows_per_image: Most rows per image in a minibatch, for units whose
            rows are not images (regions of interest, prompts, windows).
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
        # Images are channels last, unless the unit fails on that.
        self.plain = False
        self._warned = False
        self._has_rows = is_a(self.plan.unit.module, ROW_MODULES)
        self._row_counts: list[int] = []
        self._groups: list[list[int]] = []  # batches of the same shapes
        self._kinds: list[list[Rows]] = []

    def compute(self, stream: str, *, keep: Sequence[Source] | None) -> None:
        """Run the unit on a stream's inputs and store its outputs.

        Args:
            stream: 'float' or 'quant'.
            keep: Outputs to store; None stores all.
        """
        mode = float_only if stream == 'float' else quantizing
        module = self.plan.unit.module
        with calibration_mode(module), mode(module):
            if stream == 'float':
                self._choose_layout()
            for call, batch in self.calls():
                leaves, _ = flatten(self.run(stream, call, batch))
                self._store(stream, call, batch, leaves, keep)

    def calls(self) -> Iterator[tuple[int, int]]:
        """Yield (call, batch) of every call of the unit."""
        for batch in range(self.num_batches):
            for call in range(self._num_calls(batch)):
                yield call, batch

    def run(self, stream: str, call: int, batch: int) -> Any:
        """Run the unit, as it is switched, on one call's inputs."""
        args, kwargs = self._arguments(stream, call, batch)
        return self.plan.unit.module(*args, **kwargs)

    def _choose_layout(self) -> None:
        """Find the image layout that the unit needs, on its first call."""
        filled = (b for b in range(self.num_batches) if self._num_calls(b))
        batch = next(filled, None)
        if batch is None or not self._has_images(0, batch):
            return
        self.plain = needs_plain_memory(
            lambda plain: self._outputs(0, batch, plain),
            name=self.plan.unit.name,
        )

    def _has_images(self, call: int, batch: int) -> bool:
        return any(
            len(self.cache.shape(('float', source, batch))) == 4
            for source in self._inputs(call, batch)
        )

    def _outputs(self, call: int, batch: int, plain: bool) -> list[Tensor]:
        self.plain = plain
        return flatten(self.run('float', call, batch))[0]

    def _num_calls(self, batch: int) -> int:
        return len(self.plan.batches[batch].calls)

    def _inputs(self, call: int, batch: int) -> list[Source]:
        return self.plan.batches[batch].calls[call]

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
        # One tensor per source: a module may test whether key is query.
        sources = self._inputs(call, batch)
        tensors = {
            source: self.cache.get(
                self._key(stream, source, batch), plain=self.plain
            ).clone()
            for source in set(sources)
        }
        leaves = [tensors[source] for source in sources]
        skeleton = self.capturer.skeletons[self.index, call, batch]
        args, kwargs = unflatten(leaves, skeleton)
        return args, kwargs

    def _key(self, stream: str, source: Source, batch: int) -> Hashable:
        """Return the key of a leaf; float if quantized shapes don't match."""
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
                'quantized model: using the float ones where they do',
                self.plan.unit.name,
            )
        return key if same else fallback

    def prepare_sampling(self) -> None:
        """Find out how to draw minibatches; call it after ``compute``."""
        self._groups, self._kinds = [], []
        self._row_counts = [
            self._rows_of(batch) for batch in range(self.num_batches)
        ]
        groups = self._sort_batches()
        if len(groups) != 1 and self._has_rows:
            self._kinds = self._sort_calls()
        if not self._kinds:
            self._groups = groups

    def _sort_batches(self) -> list[list[int]]:
        """Group batches by shapes; [] if rows of one cannot be drawn.

        Other arguments must be equal, as they may describe single images.
        """
        groups: list[tuple[Any, list[int]]] = []
        first = self._skeletons(0)
        for batch, count in enumerate(self._row_counts):
            if count == 0 or not is_same(self._skeletons(batch), first):
                return []
            add_to_group(batch, self._signatures(batch), groups)
        return [members for _, members in groups]

    def _skeletons(self, batch: int) -> list[Any]:
        return [
            self.capturer.skeletons[self.index, call, batch]
            for call in range(self._num_calls(batch))
        ]

    def _sort_calls(self) -> list[list[Rows]]:
        """Group the calls of all batches by kind; [] if one has no rows."""
        kinds: list[tuple[Any, list[Rows]]] = []
        for batch in range(self.num_batches):
            for call, signature in enumerate(self._signatures(batch)):
                rows = Rows(batch, call, self._rows_of_call(call, batch))
                if rows.count == 0:
                    return []
                add_to_group(rows, signature, kinds)
        return [members for _, members in kinds]

    def _sources(self, call: int, batch: int) -> list[Source]:
        count = self.plan.batches[batch].num_outputs[call]
        outputs = [
            Source('out', self.index, call, place) for place in range(count)
        ]
        return [*self._inputs(call, batch), *outputs]

    def _rows_of(self, batch: int) -> int:
        """Return the independent rows of a batch; 0 if there are none."""
        calls = range(self._num_calls(batch))
        counts = {self._rows_of_call(call, batch) for call in calls}
        return counts.pop() if len(counts) == 1 else 0

    def _rows_of_call(self, call: int, batch: int) -> int:
        """Return the independent rows of a call; 0 if there are none."""
        counts, dims = set(), set()
        for source in self._sources(call, batch):
            key = ('float', source, batch)
            if counts_things(self.cache.dtype(key)):
                return 0
            shape = self.cache.shape(key)
            counts.add(shape[0] if shape else 0)
            if source.side == 'in' or source.unit != self.index:
                dims.add(len(shape))
        if len(counts) != 1:
            return 0
        count = counts.pop()
        # Rows are images, or (B, C, H, W) items such as regions of interest;
        # the first axis of a token tensor may as well be the sequence.
        is_rows = self._has_rows or dims == {4}
        return count if is_rows or count == self.lengths[batch] else 0

    def _signatures(self, batch: int) -> list[Any]:
        """Return what must be equal, call by call, to stack rows."""
        return [
            (
                self.capturer.skeletons[self.index, call, batch],
                [
                    self.cache.shape(('float', source, batch))[1:]
                    for source in self._sources(call, batch)
                ],
                first_places(self._inputs(call, batch)),
            )
            for call in range(self._num_calls(batch))
        ]

    def sample(
        self, batch_size: int, *, drop_prob: float = 0.0
    ) -> tuple[list[tuple[Call, list[Tensor]]], tuple[int, ...]]:
        """Draw a minibatch with torch's global generator.

        Args:
            batch_size: Images, if rows can be drawn; otherwise one whole
                calibration batch is drawn.
            drop_prob: Probability that an input element keeps its float
                value.

        Returns:
            Arguments and float targets of each call, and the indices of the
            images if rows are images.
        """
        ids: tuple[int, ...] = ()
        if self._groups:
            picks, ids = self._pick_rows(batch_size)
        elif self._kinds:
            picks = [self._pick_of_kind(batch_size)]
        else:
            picks, ids = self._pick_batch()
        return [self._gather(of_call, drop_prob) for of_call in picks], ids

    def _pick_batch(self) -> tuple[list[list[Pick]], tuple[int, ...]]:
        """Choose one whole batch among those that call the unit."""
        filled = [b for b in range(self.num_batches) if self._num_calls(b)]
        batch = filled[int(torch.randint(len(filled), ()))]
        first = sum(self.lengths[:batch])
        ids = tuple(range(first, first + self.lengths[batch]))
        calls = range(self._num_calls(batch))
        return [[Pick(batch, call)] for call in calls], ids

    def _pick_rows(
        self, batch_size: int
    ) -> tuple[list[list[Pick]], tuple[int, ...]]:
        """Choose rows of batches of the same shapes, for every call."""
        group = draw_group(
            self._groups,
            [
                sum(self._row_counts[batch] for batch in group)
                for group in self._groups
            ],
        )
        counts = [self._row_counts[batch] for batch in group]
        lengths = [self.lengths[batch] for batch in group]
        chosen = self._choose(sum(counts), batch_size, num_images=sum(lengths))
        places = [
            (group[place], rows) for place, rows in locate_rows(chosen, counts)
        ]
        picks = [
            [Pick(batch, call, rows) for batch, rows in places]
            for call in range(self._num_calls(group[0]))
        ]
        if counts != lengths:
            return picks, ()
        return picks, tuple(
            sum(self.lengths[:batch]) + row
            for batch, rows in places
            for row in rows
        )

    def _pick_of_kind(self, batch_size: int) -> list[Pick]:
        """Choose rows from all calls of one kind, to run as one call."""
        kind = draw_group(
            self._kinds,
            [sum(rows.count for rows in kind) for kind in self._kinds],
        )
        counts = [rows.count for rows in kind]
        chosen = self._choose(
            sum(counts), batch_size, num_images=sum(self.lengths)
        )
        return [
            Pick(kind[place].batch, kind[place].call, rows)
            for place, rows in locate_rows(chosen, counts)
        ]

    def _choose(
        self, total: int, batch_size: int, *, num_images: int
    ) -> list[int]:
        """Draw sorted row numbers."""
        per_image = min(total // max(num_images, 1), self.rows_per_image)
        size = min(total, batch_size * max(1, per_image))
        chosen: list[int] = torch.randperm(total)[:size].sort().values.tolist()
        return chosen

    def _gather(
        self, picks: list[Pick], drop_prob: float
    ) -> tuple[Call, list[Tensor]]:
        """Stack the picked rows of calls of the same kind."""
        first = picks[0]
        repeats = first_places(self._inputs(first.call, first.batch))
        mixed: dict[int, Tensor] = {}
        for place in dict.fromkeys(repeats):
            sources = [self._inputs(p.call, p.batch)[place] for p in picks]
            mixed[place] = self._rows('quant', sources, picks)
            if drop_prob > 0 and is_float(mixed[place]):
                mixed[place] = random_drop(
                    mixed[place],
                    self._rows('float', sources, picks),
                    drop_prob=drop_prob,
                )
        count = self.plan.batches[first.batch].num_outputs[first.call]
        targets = [
            self._rows(
                'float',
                [Source('out', self.index, p.call, place) for p in picks],
                picks,
            )
            for place in range(count)
        ]
        skeleton = self.capturer.skeletons[self.index, first.call, first.batch]
        args, kwargs = unflatten([mixed[p] for p in repeats], skeleton)
        return (args, kwargs), targets

    def _rows(
        self, stream: str, sources: list[Source], picks: list[Pick]
    ) -> Tensor:
        parts = []
        for source, pick in zip(sources, picks, strict=True):
            key = self._key(stream, source, pick.batch)
            parts.append(
                self.cache.get(key, plain=self.plain).clone()
                if pick.rows is None
                else self.cache.rows(key, pick.rows, plain=self.plain)
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts)
