"""Capture the inputs of units with as few whole-model passes as possible.

One batch is traced first to find the units and their order. An input tensor
that is an earlier unit's input or output is taken from there. Only the others
('chain breaks') are captured by running the model: the float model once for
all units, and the model as quantized so far once per unit with a chain break.
Each batch is linked in the pass that captures it, as the number of calls of a
unit may differ between batches (by prompts or views).

The trace is its batch's part of the float pass. Breaks cannot share a pass:
each needs the final weights of the units before it. So a run takes one pass,
one for each break, and the batches in which ``first_full_batch`` looks for
the names of what is called: one, where it calls every layer.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from taskptq.calibration.batches import batch_length
from taskptq.calibration.calibrate import Forward, calibration_mode
from taskptq.core import float_only, quantizing
from taskptq.hosts.class_lookup import replayed_input
from taskptq.reconstruction.capture.cache import ActivationCache
from taskptq.reconstruction.capture.nesting import flatten
from taskptq.reconstruction.capture.provenance import (
    Links,
    Plan,
    Source,
    TensorTracker,
    outputs_of,
)
from taskptq.reconstruction.capture.tracing import (
    FloatBatch,
    bound_input,
    chosen_rows,
    hooked,
)

# What code raises that adds replayed rows to rows of its own choice.
MISFITS = (AssertionError, IndexError, RuntimeError, ValueError)

logger = logging.getLogger('taskptq')


class _Stop(Exception):
    """Every wanted tensor is captured: skip the rest of the model."""


class Capturer:
    """Run the model to fill the cache; count the whole-model passes.

    Keys of the cache are (stream, source, batch index) with stream 'float'
    or 'quant'.

    Args:
        model: Swapped model.
        plans: Plans from :func:`trace`.
        batches: Calibration batches.
        forward: Runs the model on one batch.
        cache: Receives the tensors.
    """

    def __init__(
        self,
        model: nn.Module,
        plans: Sequence[Plan],
        batches: Sequence[Any],
        *,
        forward: Forward,
        cache: ActivationCache,
    ) -> None:
        self.model = model
        self.plans = plans
        self.batches = batches
        self.forward = forward
        self.cache = cache
        self.num_passes = 0
        # (unit, call, batch) -> arguments without their tensors
        self.skeletons: dict[tuple[int, int, int], Any] = {}
        # Images per batch; noted during the passes, as reading a batch may
        # decode its images
        self.lengths: list[int] = [0] * len(batches)
        self._replays: dict[tuple[tuple[str, int], int], Tensor] = {}
        # Replays that the model's own code did not take
        self._misfits: set[tuple[str, int] | None] = set()

    def capture_float(self, done: FloatBatch | None = None) -> None:
        """Link every batch and capture its chain breaks, in one pass.

        Args:
            done: Traced batch, which is not run again.
        """
        for plan in self.plans:
            plan.batches = [Links() for _ in self.batches]
        if done is not None:
            self._take_over(done)
        with float_only(self.model):
            self._run(range(len(self.plans)), 'float', done=done)

    def _take_over(self, done: FloatBatch) -> None:
        """Store what the trace captured."""
        number = done.number
        self.lengths[number] = batch_length(self.batches[number])
        places = {plan.replay for plan in self.plans}
        for place, rows in done.replays.items():
            if place in places:
                self._replays[place, number] = rows
        for (index, call), skeleton in done.skeletons.items():
            self.skeletons[index, call, number] = skeleton
        for index, plan in enumerate(self.plans):
            plan.batches[number] = plan.traced
            for own in plan.captured(index):
                self.cache.put(('float', own, number), done.tensors.get(own))
                done.tensors.delete(own)

    def capture_quant(self, index: int) -> None:
        """Capture one unit's chain breaks behind the quantized units."""
        with quantizing(self.model):
            self._run([index], 'quant')

    def forget(self, index: int, later: set[Source]) -> None:
        """Delete a unit's tensors from the cache that no later unit reads."""
        plan = self.plans[index]
        used = set(plan.sources())
        used |= set(outputs_of(plan, index))
        for source in used - later:
            for batch in range(len(self.batches)):
                self.cache.delete(('float', source, batch))
                self.cache.delete(('quant', source, batch))

    def _run(
        self,
        wanted: Sequence[int] | range,
        stream: str,
        *,
        done: FloatBatch | None = None,
    ) -> None:
        self.num_passes += 1
        for number, batch in enumerate(self.batches):
            if done is not None and number == done.number:
                continue
            self.lengths[number] = batch_length(batch)
            recorder = _Recorder(self, wanted, stream, number)
            if recorder.missing == 0:
                continue
            try:
                self._pass(recorder, batch)
            except MISFITS as error:
                if not recorder.replayed:
                    raise
                logger.info(
                    'rows chosen by the float model do not fit %s (%s): the '
                    "quantized model's own are captured",
                    ', '.join(name for name, _ in recorder.replayed),
                    error,
                )
                self._misfits |= recorder.replayed
                again = _Recorder(self, wanted, stream, number)
                self._pass(again, batch)

    def _pass(self, recorder: _Recorder, batch: Any) -> None:
        with (
            hooked(self.model, recorder),
            calibration_mode(self.model),
            suppress(_Stop),
        ):
            self.forward(self.model, batch)


class _Recorder:
    """Store the wanted tensors of one forward pass over one batch."""

    def __init__(
        self,
        owner: Capturer,
        wanted: Sequence[int] | range,
        stream: str,
        batch: int,
    ) -> None:
        self.owner = owner
        self.stream = stream
        self.batch = batch
        self.index = {id(owner.plans[i].unit.module): i for i in wanted}
        self.links = {i: owner.plans[i].batches[batch] for i in wanted}
        # The number of calls is known only after the float pass.
        self.missing = -1
        if stream == 'quant':
            self.missing = sum(len(x.calls) for x in self.links.values())
        self.calls: dict[int, int] = {}
        self.tracker = TensorTracker()
        self.selector_calls: dict[str, int] = {}
        self.replays = {owner.plans[i].replay for i in wanted}
        self.replays -= owner._misfits
        self.replayed: set[tuple[str, int]] = set()

    def wants(self, module: nn.Module) -> bool:
        return id(module) in self.index or bool(replayed_input(module))

    def before(self, name: str, module: nn.Module, inputs: Any) -> Any:
        index = self.index.get(id(module))
        if index is None:
            return self._select(name, module, inputs)
        call = self.calls.get(index, 0)
        leaves, skeleton = flatten(inputs)
        links = self.links[index]
        if self.stream == 'float':
            self.tracker.before(links, index, leaves)
            self.owner.skeletons[index, call, self.batch] = skeleton
        sources = links.calls[call] if call < len(links.calls) else []
        for place, (leaf, source) in enumerate(
            zip(leaves, sources, strict=False)
        ):
            if source == Source('in', index, call, place):
                self.owner.cache.put((self.stream, source, self.batch), leaf)
        return None

    def after(self, name: str, module: nn.Module, output: Any) -> None:
        del name
        index = self.index.get(id(module))
        if index is None:
            return
        if self.stream == 'float':
            leaves, _ = flatten(output)
            self.tracker.after(self.links[index], index, leaves)
        self.calls[index] = self.calls.get(index, 0) + 1
        self.missing -= 1
        if self.missing == 0:
            raise _Stop

    def _select(self, name: str, module: nn.Module, inputs: Any) -> Any:
        """Record the float model's choice of rows, or replay it."""
        place = (name, self.selector_calls.get(name, 0))
        self.selector_calls[name] = place[1] + 1
        if place not in self.replays:
            return None
        key = (place, self.batch)
        if self.stream == 'float':
            self.owner._replays[key] = chosen_rows(module, inputs).clone()
            return None
        if key not in self.owner._replays:
            return None
        argument, bound = bound_input(module, inputs)
        bound.arguments[argument] = self.owner._replays[key]
        self.replayed.add(place)
        return bound.args, bound.kwargs
