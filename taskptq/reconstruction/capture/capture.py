"""Capture the inputs of units with as few whole-model passes as possible.

One batch is traced first to find the units and their order. An input tensor
that is an earlier unit's input or output is taken from there. Only the others
('chain breaks') are captured by running the model: the float model once for
all units, and the model as quantized so far once per unit with a chain break.
Each batch is linked in the pass that captures it, as the number of calls of a
unit may differ between batches (by prompts or views).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from taskptq.calibration.batches import batch_length
from taskptq.calibration.calibrate import Forward, calibration_mode
from taskptq.core import float_only, quantizing
from taskptq.hosts.class_lookup import replayed_input
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.capture.cache import ActivationCache, stored_bytes
from taskptq.reconstruction.capture.nesting import flatten
from taskptq.reconstruction.capture.provenance import (
    Links,
    Plan,
    Source,
    TensorTracker,
    outputs_of,
)

# Batches searched for one that calls every layer.
TRACED_BATCHES = 4


class _Stop(Exception):
    """Every wanted tensor is captured: skip the rest of the model."""


def trace(
    model: nn.Module, units: Sequence[Unit], batch: Any, *, forward: Forward
) -> list[Plan]:
    """Run one batch and link each unit's inputs to their sources.

    Returns:
        One plan per called unit, in execution order.
    """
    tracer = _Tracer(units)
    with _hooked(model, tracer), calibration_mode(model), float_only(model):
        forward(model, batch)
    return tracer.plans


def called_modules(
    model: nn.Module, batch: Any, *, forward: Forward
) -> dict[str, int]:
    """Return how often a forward pass calls each module that it calls."""
    called: Counter[str] = Counter()
    handles = [
        module.register_forward_pre_hook(
            lambda _m, _a, name=name: called.update([name])
        )
        for name, module in model.named_modules()
    ]
    try:
        with calibration_mode(model), float_only(model):
            forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return called


def first_full_batch(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    layers: set[str],
    forward: Forward,
) -> tuple[int, dict[str, int], int]:
    """Find a batch that calls every layer, among the first few.

    An image without prompts or proposals skips a whole head.

    Args:
        model: Swapped model.
        batches: Calibration batches.
        layers: Names of the layers.
        forward: Runs the model on one batch.

    Returns:
        Number of the batch (of that with the most modules if none calls all
        layers), how often it calls each module, and the number of batches
        run.
    """
    best: dict[str, int] = {}
    chosen = number = 0
    for number, batch in enumerate(batches[:TRACED_BATCHES]):
        called = called_modules(model, batch, forward=forward)
        if len(called) > len(best):
            best, chosen = called, number
        if layers <= called.keys():
            break
    return chosen, best, number + 1


class _Tracer:
    """List the units that one forward pass calls, and link them."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.units = {id(unit.module): unit for unit in units}
        self.plans: list[Plan] = []
        self._index: dict[int, int] = {}
        self._tracker = TensorTracker()
        self._selector: tuple[str, int] | None = None
        self._selector_calls: dict[str, int] = {}

    def wants(self, module: nn.Module) -> bool:
        return id(module) in self.units or bool(replayed_input(module))

    def before(self, name: str, module: nn.Module, inputs: Any) -> Any:
        if id(module) not in self.units:
            count = self._selector_calls.get(name, 0)
            self._selector = (name, count)
            self._selector_calls[name] = count + 1
            return None
        index = self._index.setdefault(id(module), len(self.plans))
        if index == len(self.plans):
            self.plans.append(Plan(self.units[id(module)]))
        plan = self.plans[index]
        if self._selector is not None:
            plan.replay, self._selector = self._selector, None
        leaves = flatten(inputs)[0]
        self._tracker.before(plan.traced, index, leaves)
        call = len(plan.traced.calls) - 1
        for place, leaf in enumerate(leaves):
            plan.sizes[Source('in', index, call, place)] = stored_bytes(leaf)
        return None

    def after(self, name: str, module: nn.Module, output: Any) -> None:
        del name
        if id(module) not in self.units:
            return
        index = self._index[id(module)]
        plan = self.plans[index]
        leaves = flatten(output)[0]
        call = len(plan.traced.num_outputs)
        self._tracker.after(plan.traced, index, leaves)
        for place, leaf in enumerate(leaves):
            plan.sizes[Source('out', index, call, place)] = stored_bytes(leaf)


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

    def capture_float(self) -> None:
        """Link every batch and capture its chain breaks, in one pass."""
        for plan in self.plans:
            plan.batches = [Links() for _ in self.batches]
        with float_only(self.model):
            self._run(range(len(self.plans)), 'float')

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

    def _run(self, wanted: Sequence[int] | range, stream: str) -> None:
        self.num_passes += 1
        for number, batch in enumerate(self.batches):
            self.lengths[number] = batch_length(batch)
            recorder = _Recorder(self, wanted, stream, number)
            if recorder.missing == 0:
                continue
            with (
                _hooked(self.model, recorder),
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
        argument = replayed_input(module)
        assert argument is not None
        place = (name, self.selector_calls.get(name, 0))
        self.selector_calls[name] = place[1] + 1
        if place not in self.replays:
            return None
        args, kwargs = inputs
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        key = (place, self.batch)
        if self.stream == 'float':
            self.owner._replays[key] = bound.arguments[argument].clone()
            return None
        if key not in self.owner._replays:
            return None
        bound.arguments[argument] = self.owner._replays[key]
        return bound.args, bound.kwargs


@contextmanager
def _hooked(model: nn.Module, listener: _Tracer | _Recorder) -> Iterator[None]:
    """Report calls of the wanted modules to a listener."""
    handles: list[RemovableHandle] = []
    for name, module in model.named_modules():
        if not listener.wants(module):
            continue
        handles.append(
            module.register_forward_pre_hook(
                _pre_hook(listener, name), with_kwargs=True
            )
        )
        handles.append(
            module.register_forward_hook(_post_hook(listener, name))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _pre_hook(listener: _Tracer | _Recorder, name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return listener.before(name, module, (args, kwargs))

    return hook


def _post_hook(
    listener: _Tracer | _Recorder, name: str
) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        del args
        listener.after(name, module, output)

    return hook
