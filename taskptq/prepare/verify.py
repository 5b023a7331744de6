"""Check folds and swaps on a batch, each where it acts, before any is made.

One forward pass of the float model is watched. Each layer that is to be
swapped is run beside its counterpart, quantizers off, on what it receives;
each pair that is to be folded beside the folded layer. Nothing but verdicts
outlives the call that it is about.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from taskptq.modules.base import QuantModule
from taskptq.prepare.compare import (
    Check,
    cloned,
    counterpart,
    fold_gap,
    outputs,
)
from taskptq.prepare.difference import difference, share, tensors
from taskptq.prepare.fuse import LAYERS, output_channels
from taskptq.prepare.tree import (
    is_scripted,
    open_modules,
    parameter_owners,
)
from taskptq.prepare.watch import no_fast_paths

# max |diff| / max |float| of a module's output that counts as unchanged.
TOLERANCE = 1e-4
# Calls of a module that are compared: a head runs on each level of a
# pyramid, a decoder may run a hundred times.
CHECKED_CALLS = 4
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
# What reads of a tensor nothing but its type and shape.
_SHAPES = ('new_', 'empty_like', 'zeros_like', 'ones_like', 'full_like')


@dataclass
class _Swap:
    """What is known of a layer that is to be swapped."""

    check: Check
    counterpart: QuantModule | None = None
    calls: int = 0
    compared: int = 0
    reason: str = ''
    inputs: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def simple(self) -> bool:
        """Whether it is known to leave its inputs as they are."""
        return isinstance(self.check.module, LAYERS)


@dataclass
class _Layer:
    """What is known of a layer that norms may be folded into."""

    name: str
    module: nn.Module
    norms: dict[str, nn.Module] = field(default_factory=dict)
    calls: int = 0
    compared: int = 0
    gaps: dict[str, float] = field(default_factory=dict)
    outputs: list[weakref.ref[Tensor]] = field(default_factory=list)
    read_elsewhere: bool = False
    odd_shape: bool = False


class LocalChecks:
    """Verdicts on swaps and folds, from one pass of the float model.

    Args:
        model: Float model in eval mode; left as it is.
        swaps: Layers that are to be swapped.
        pairs: Candidates (layer, norm) by name.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        swaps: Sequence[Check],
        pairs: Sequence[tuple[str, str]],
    ) -> None:
        self.model = model
        modules = dict(open_modules(model))
        self._swaps = {check.name: _Swap(check) for check in swaps}
        self._layers: dict[str, _Layer] = {}
        for layer, norm in pairs:
            state = self._layers.setdefault(
                layer, _Layer(layer, modules[layer])
            )
            state.norms[norm] = modules[norm]
        self._norms = {norm: modules[norm] for _, norm in pairs}
        self._sources: dict[str, Counter[str]] = defaultdict(Counter)
        # layer -> who reads its weight outside of its own call: innermost
        # swapped layer, or '' where it is none of them
        self.readers: dict[str, set[str]] = defaultdict(set)
        self._owners = self._weights()
        self._others = self._other_owners(modules)
        self._given: dict[int, tuple[weakref.ref[Tensor], _Layer]] = {}
        self._reading: list[int] = []  # storages that a norm is reading
        self._stack: list[str] = []
        self._busy = False

    @torch.no_grad()
    def run(self, forward: Callable[[], Any]) -> None:
        """Watch one forward pass.

        Args:
            forward: Runs the model on a batch.
        """
        with self._hooked(), no_fast_paths(self.model), _Watch(self):
            result = forward()
        if any(ref() is not None for ref in self._outputs()):
            gc.collect()
        for layer in self._layers.values():
            # Whoever still holds it, e.g. the result, has read it.
            layer.read_elsewhere |= any(
                ref() is not None for ref in layer.outputs
            )
            layer.outputs.clear()
        del result
        for swap in self._swaps.values():
            swap.counterpart = None

    def calls(self, name: str) -> int:
        """Return how often a layer that is to be swapped was called."""
        return self._swaps[name].calls

    def swap_reason(self, name: str) -> str:
        """Return why a layer must not be swapped, '' if it may."""
        return self._swaps[name].reason

    def reached(self, layer: str, norm: str) -> bool:
        """Whether a pair was seen at work."""
        state = self._layers[layer]
        unseen = not (
            state.compared
            or state.odd_shape
            or state.read_elsewhere
            or self.readers[layer]
        )
        # Empty tensors, e.g. of a head without boxes, show nothing.
        return not (
            unseen and self._sources[norm] == Counter({layer: state.calls})
        )

    def fold_reason(self, layer: str, norm: str) -> str:
        """Return why a pair that was reached must not be folded, or ''."""
        state = self._layers[layer]
        if self._sources[norm] != Counter({layer: state.calls}):
            return f'does not read each output of {layer}, and nothing else'
        if state.read_elsewhere:
            return f'is not the only one to read the output of {layer}'
        if self.readers[layer]:
            return f'follows {layer}, whose weight is read past its forward'
        if state.odd_shape:
            return f'follows {layer}, which has its channels on another axis'
        gap = state.gaps.get(norm, 0.0)
        if not gap <= TOLERANCE:
            return f'would change the output by {share(gap)} in {layer}'
        return ''

    def _outputs(self) -> Iterator[weakref.ref[Tensor]]:
        for layer in self._layers.values():
            yield from layer.outputs

    def _weights(self) -> dict[int, set[str]]:
        """Return storage of a weight -> names of the layers that own it."""
        owners: dict[int, set[str]] = defaultdict(set)
        for name, swap in self._swaps.items():
            for parameter in swap.check.cls.weight_slots:
                own = swap.check.module._parameters.get(parameter)
                if own is not None:
                    owners[_storage(own)].add(name)
        for name, layer in self._layers.items():
            own = layer.module._parameters.get('weight')
            if own is not None:
                owners[_storage(own)].add(name)
        return owners

    def _other_owners(
        self, modules: dict[str, nn.Module]
    ) -> dict[str, nn.Module]:
        """Return the layers that share such a weight: they may read it."""
        others = {}
        for owners in parameter_owners(self.model).values():
            seen = [o for o in owners if not is_scripted(o[1])]
            own = seen[0][1]._parameters[seen[0][2]] if seen else None
            if len(owners) > 1 and own is not None:
                names = {name for name, _, _ in seen}
                if _storage(own) in self._owners:
                    self._owners[_storage(own)] |= names
                    others.update({name: modules[name] for name in names})
        return others

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handles = []
        for name, module in self._called_modules().items():
            handles += [
                module.register_forward_pre_hook(
                    self._before(name), with_kwargs=True
                ),
                module.register_forward_hook(
                    self._after(name), with_kwargs=True
                ),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _called_modules(self) -> dict[str, nn.Module]:
        return {
            **self._others,
            **{name: swap.check.module for name, swap in self._swaps.items()},
            **{name: layer.module for name, layer in self._layers.items()},
            **self._norms,
        }

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._busy:
                return
            self._stack.append(name)
            if name in self._norms:
                self._read_by_norm(name, args, kwargs)
            swap = self._swaps.get(name)
            if swap is not None and not swap.simple and _open(swap):
                with self._aside():
                    swap.inputs.append(cloned((args, kwargs)))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(
            module: nn.Module, args: Any, kwargs: Any, output: Any
        ) -> None:
            if self._busy:
                return
            while self._stack and self._stack.pop() != name:
                pass  # a call inside that was left by an exception
            if name in self._norms:
                self._reading.pop()
            with self._aside():
                if name in self._swaps:
                    self._check_swap(self._swaps[name], args, kwargs, output)
                if name in self._layers:
                    self._check_folds(self._layers[name], args, kwargs, output)

        return hook

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """What runs inside is not the model's own doing."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _read_by_norm(self, name: str, args: Any, kwargs: Any) -> None:
        x = next(tensors((args, kwargs)))
        given = self._given.get(_storage(x))
        source = given[1].name if given and given[0]() is x else ''
        self._sources[name][source] += 1
        self._reading.append(_storage(x) if source else -1)

    def _check_swap(
        self, swap: _Swap, args: Any, kwargs: Any, output: Any
    ) -> None:
        swap.calls += 1
        inputs = swap.inputs.pop() if swap.inputs else (args, kwargs)
        if not _open(swap) or not any(x.numel() for x in tensors(output)):
            return
        swap.compared += 1
        check = swap.check
        if swap.counterpart is None:
            swap.counterpart = counterpart(check)
        try:
            found, expected = outputs(
                swap.counterpart, check.module, inputs, output
            )
        except _FAILURES as error:
            text = str(error).split('\n')[0][:200]
            swap.reason = (
                f'its counterpart stops with {type(error).__name__}: {text}'
            )
            return
        gap = difference(found, expected)
        if not swap.simple:
            # Also in what it does to its inputs.
            gap = max(gap, difference(inputs, (args, kwargs)))
        if not gap <= TOLERANCE:
            swap.reason = (
                f'its counterpart differs by {share(gap)} on the batch, '
                'quantizers off'
            )

    def _check_folds(
        self, layer: _Layer, args: Any, kwargs: Any, output: Any
    ) -> None:
        layer.calls += 1
        if not isinstance(output, Tensor):
            layer.odd_shape = True
            return
        ref = weakref.ref(output)
        layer.outputs.append(ref)
        self._given[_storage(output)] = (ref, layer)
        axes = 2 if isinstance(layer.module, nn.Linear) else 4
        if output.dim() != axes or (
            output.shape[1] != output_channels(layer.module)
        ):
            layer.odd_shape = True
        elif output.numel() and layer.compared < CHECKED_CALLS:
            layer.compared += 1
            for name, norm in layer.norms.items():
                gap = fold_gap(layer.module, norm, (args, kwargs), output)
                layer.gaps[name] = max(layer.gaps.get(name, 0.0), gap)

    def saw(self, func: Any, args: Any, kwargs: Any) -> None:
        """Note who reads what: called for each operation of the pass."""
        if self._busy:
            return
        for x in tensors((args, kwargs)):
            key = _storage(x)
            if key == -1:
                continue
            given = self._given.get(key)
            if given is not None and key not in self._reading:
                if given[0]() is not None:
                    given[1].read_elsewhere = True
                else:
                    del self._given[key]  # its memory serves another tensor
            if key in self._owners and not self._owners[key] & {*self._stack}:
                self._note_reader(key, str(func))

    def _note_reader(self, key: int, operation: str) -> None:
        if any(f'.{name}' in operation for name in _SHAPES):
            return
        swapped = [name for name in self._stack if name in self._swaps]
        for name in self._owners[key]:
            self.readers[name].add(swapped[-1] if swapped else '')


class _Watch(TorchDispatchMode):
    """Shows each operation to the checks, and runs it."""

    def __init__(self, checks: LocalChecks) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._checks = checks

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Keeping torch.compile out would import all of it, for 3 s.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self._checks.saw(func, args, kwargs)
        return func(*args, **kwargs)


def _open(swap: _Swap) -> bool:
    return swap.compared < CHECKED_CALLS and not swap.reason


def _storage(x: Tensor) -> int:
    """Return what tells the memory of tensors apart; -1 where it has none."""
    if x.layout != torch.strided or x.is_nested or x.numel() == 0:
        return -1
    return x.untyped_storage().data_ptr()
