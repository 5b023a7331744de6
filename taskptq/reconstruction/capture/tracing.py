"""Find out which units a batch calls, and where their inputs come from."""

from __future__ import annotations

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from taskptq.calibration.calibrate import Forward, calibration_mode
from taskptq.core import float_only
from taskptq.core.distributed import gathered
from taskptq.hosts.class_lookup import replayed_input
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.capture.cache import ActivationCache, stored_bytes
from taskptq.reconstruction.capture.nesting import flatten
from taskptq.reconstruction.capture.provenance import (
    Plan,
    Source,
    TensorTracker,
)

# Batches searched for one that calls every layer.
TRACED_BATCHES = 4


class Listener(Protocol):
    """Is told of the calls of the modules that it wants."""

    def wants(self, module: nn.Module) -> bool:
        """Whether to report a module's calls."""

    def before(self, name: str, module: nn.Module, inputs: Any) -> Any:
        """Note a call; return other inputs, or None."""

    def after(self, name: str, module: nn.Module, output: Any) -> None:
        """Note the output of a call."""


@dataclass
class FloatBatch:
    """What a float pass over one batch captured.

    Args:
        number: Number of the batch.
        tensors: Inputs that no unit provides, by their sources.
        skeletons: (unit, call) -> arguments without their tensors.
        replays: (row-selecting module, call) -> its choice of rows.
    """

    number: int
    tensors: ActivationCache = field(
        default_factory=lambda: ActivationCache(sys.maxsize)
    )
    skeletons: dict[tuple[int, int], Any] = field(default_factory=dict)
    replays: dict[tuple[str, int], Tensor] = field(default_factory=dict)


def trace(
    model: nn.Module,
    units: Sequence[Unit],
    batch: Any,
    *,
    forward: Forward,
    keep: FloatBatch | None = None,
) -> list[Plan]:
    """Run one batch and link each unit's inputs to their sources.

    Args:
        model: Swapped model.
        units: The units.
        batch: Collated batch.
        forward: Runs the model on it.
        keep: Receives what the pass captures, for
            :meth:`Capturer.capture_float`.

    Returns:
        One plan per called unit, in execution order.
    """
    tracer = _Tracer(units, keep)
    with hooked(model, tracer), calibration_mode(model), float_only(model):
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

    def __init__(self, units: Sequence[Unit], keep: FloatBatch | None) -> None:
        self.units = {id(unit.module): unit for unit in units}
        self.keep = keep
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
            if self.keep is not None:
                chosen = chosen_rows(module, inputs)
                self.keep.replays[self._selector] = chosen.clone()
            return None
        index = self._index.setdefault(id(module), len(self.plans))
        if index == len(self.plans):
            self.plans.append(Plan(self.units[id(module)]))
        plan = self.plans[index]
        if self._selector is not None:
            plan.replay, self._selector = self._selector, None
        leaves, skeleton = flatten(inputs)
        self._tracker.before(plan.traced, index, leaves)
        call = len(plan.traced.calls) - 1
        if self.keep is not None:
            self.keep.skeletons[index, call] = skeleton
        for place, leaf in enumerate(leaves):
            own = Source('in', index, call, place)
            plan.sizes[own] = stored_bytes(leaf)
            if self.keep is not None and plan.calls[call][place] == own:
                self.keep.tensors.put(own, leaf)
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


def chosen_rows(module: nn.Module, inputs: Any) -> Tensor:
    """Return the argument by which a module selects rows.

    Args:
        module: Has a ``replayed_input``.
        inputs: Positional and keyword arguments of its call.
    """
    argument, bound = bound_input(module, inputs)
    chosen: Tensor = bound.arguments[argument]
    return chosen


def bound_input(
    module: nn.Module, inputs: Any
) -> tuple[str, inspect.BoundArguments]:
    """Return the name of that argument, and all arguments by their names.

    Args:
        module: Has a ``replayed_input``.
        inputs: Positional and keyword arguments of its call.
    """
    argument = replayed_input(module)
    assert argument is not None
    args, kwargs = inputs
    return argument, inspect.signature(module.forward).bind(*args, **kwargs)


@contextmanager
def hooked(model: nn.Module, listener: Listener) -> Iterator[None]:
    """Report calls of the wanted modules to a listener.

    Args:
        model: The model.
        listener: Chooses the modules.
    """
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


def _pre_hook(listener: Listener, name: str) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return listener.before(name, module, (args, kwargs))

    return hook


def _post_hook(listener: Listener, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        del args
        listener.after(name, module, output)

    return hook


def common_calls(calls: dict[str, int]) -> dict[str, int]:
    """Keep what every rank calls, and the most calls: they train in step."""
    ranks = gathered(calls)
    names = set.intersection(*(set(rank) for rank in ranks))
    return {name: max(rank[name] for rank in ranks) for name in sorted(names)}


def check_order(plans: Sequence[Plan]) -> None:
    """Refuse units that ranks call in different orders.

    Raises:
        RuntimeError: If they do.
    """
    names = [plan.unit.name for plan in plans]
    if any(other != names for other in gathered(names)):
        raise RuntimeError(
            'ranks call the units in different orders on their first batches: '
            'reconstruct in a single process'
        )
