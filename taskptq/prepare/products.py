"""Trace which products of a model run with quantized operands.

A tensor carries quantized values if a quantizer gave it, and as long as only
operators follow that move or select values. Every matrix product and
convolution that the dispatcher of torch sees is counted, whoever calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from taskptq.core import Quantizer
from taskptq.core.switches import quantizing
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.prepare.products_ops import Pair, kept_tensors, products_of
from taskptq.prepare.products_reasons import is_on, reason_of_layer
from taskptq.prepare.products_report import Product, ProductReport

__all__ = ['Product', 'ProductReport', 'read_past', 'trace_products']

Forward = Callable[[nn.Module, Any], Any]


def trace_products(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    forward: Forward,
    max_batches: int = 4,
) -> ProductReport:
    """Run a calibrated model and count what it multiplies.

    Quantizers are on. Weights count as quantized where freezing puts, or has
    put, them on their grid. Batches follow the first one only while they
    may still reach counterparts that none has called.

    Args:
        model: Prepared and calibrated.
        batches: Collated batches.
        forward: Runs the model on one batch.
        max_batches: Batches to trace at most.

    Raises:
        ValueError: If there is no batch.
    """
    if not batches:
        raise ValueError('there is no batch to trace: give at least one')
    tracer = _Tracer(model)
    with _evaluating(model), quantizing(model), tracer.active():
        for batch in batches[:max_batches]:
            tracer.num_batches += 1
            forward(model, batch)
            if not tracer.unreached():
                break
    return tracer.report()


def read_past(
    model: nn.Module, batch: Any, *, forward: Forward
) -> dict[str, str]:
    """Return the layers whose weights others read without calling them.

    Args:
        model: Prepared; runs float, whatever its quantizers say.
        batch: Collated batch.
        forward: Runs the model on it.

    Returns:
        Qualified name of the layer -> that of the module that reads.
    """
    tracer = _Tracer(model)
    with (
        _evaluating(model),
        quantizing(model, weights=False, activations=False),
        tracer.active(),
    ):
        forward(model, batch)
    return tracer.report().read_by


class _Mark(NamedTuple):
    """What is known of a tensor's values.

    Args:
        quantized: Whether they lie on a grid.
        stored: Name of the parameter or buffer that they are; '' if a
            quantizer computed them.
        version: Writes to its memory that were seen when it was marked.
    """

    quantized: bool
    stored: str
    version: int


class _Tracer:
    """Everything that a trace remembers; see :func:`trace_products`."""

    def __init__(self, model: nn.Module) -> None:
        self.num_batches = 0
        self._model = model
        self._names = {id(m): name for name, m in model.named_modules()}
        self._layers = dict(quant_modules(model))
        self._called: set[str] = set()
        self._read_by: dict[str, str] = {}
        self._stack: list[tuple[str, str]] = [('', type(model).__name__)]
        self._functions: list[str] = []
        self._products: dict[tuple[str, str], Product] = {}
        self._marks: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._writes: dict[int, int] = {}
        self._owners: dict[int, set[str]] = {}

    @contextmanager
    def active(self) -> Iterator[None]:
        """Watch every call inside."""
        self._mark_stored()
        # Global hooks: scripted modules refuse hooks of their own.
        handles = [
            torch_hooks.register_module_forward_pre_hook(self._enter),
            torch_hooks.register_module_forward_hook(
                self._leave, always_call=True
            ),
        ]
        try:
            with ExitStack() as stack:
                stack.enter_context(self._marked_weights())
                stack.enter_context(_FunctionNames(self))
                stack.enter_context(_Dispatch(self))
                yield
        finally:
            for handle in handles:
                handle.remove()

    def report(self) -> ProductReport:
        """Return what was seen."""
        return ProductReport(
            products=list(self._products.values()),
            num_batches=self.num_batches,
            unreached=self.unreached(),
            read_by=dict(self._read_by),
        )

    def unreached(self) -> list[str]:
        """Return the counterparts that nothing has called."""
        return [name for name in self._layers if name not in self._called]

    def _mark_stored(self) -> None:
        """Mark parameters and buffers by name, and weights on a grid."""
        tensors = [
            *self._model.named_parameters(remove_duplicate=False),
            *self._model.named_buffers(remove_duplicate=False),
        ]
        for name, tensor in tensors:
            self.mark(tensor, quantized=False, stored=name)
        for layer, module in self._layers.items():
            for parameter, slot in module.active_slots():
                weight: Tensor = getattr(module, parameter)
                self._owners.setdefault(id(weight), set()).add(layer)
                if is_on(getattr(module, slot)):
                    name = f'{layer}.{parameter}'
                    self.mark(weight, quantized=True, stored=name)

    @contextmanager
    def _marked_weights(self) -> Iterator[None]:
        """Mark what each counterpart takes for its weight."""
        for module in self._layers.values():
            module.__dict__['quantized_weight'] = self._marking(module)
        try:
            yield
        finally:
            for module in self._layers.values():
                del module.__dict__['quantized_weight']

    def _marking(self, module: QuantModule) -> Callable[..., Tensor]:
        original = module.quantized_weight

        def quantized_weight(parameter: str = 'weight') -> Tensor:
            weight = original(parameter)
            if is_on(getattr(module, module.weight_slots[parameter])):
                self.mark(weight, quantized=True, stored=parameter)
            return weight

        return quantized_weight

    def _enter(self, module: nn.Module, _: Any) -> None:
        name = self._names.get(id(module), self._stack[-1][0])
        self._stack.append((name, type(module).__name__))
        self._called.add(name)

    def _leave(self, module: nn.Module, _: Any, out: Any) -> None:
        name, _ = self._stack.pop()
        if isinstance(module, Quantizer):
            # Whoever calls its quantizer runs a layer, called or not.
            self._called.add(name.rpartition('.')[0])
            if isinstance(out, Tensor) and is_on(module):
                self.mark(out, quantized=True, stored='')

    def mark(self, tensor: Tensor, *, quantized: bool, stored: str) -> None:
        """Remember what a tensor is."""
        version = self._writes.get(_memory(tensor), 0)
        self._marks[tensor] = _Mark(quantized, stored, version)

    def mark_of(self, tensor: Tensor | None) -> _Mark | None:
        """Return what is known of a tensor, if that still holds."""
        mark = None if tensor is None else self._marks.get(tensor)
        if mark is None or self._writes.get(_memory(tensor), 0) != (
            mark.version
        ):
            return None
        return mark  # type: ignore[no-any-return]

    def push(self, function: str) -> None:
        """Enter a function of torch."""
        self._functions.append(function)

    def pop(self) -> None:
        """Leave it."""
        self._functions.pop()

    def follow_padding(self, x: Any, out: Any, *, zeros: bool) -> None:
        """Keep the mark of a padded tensor, whatever computed the padding."""
        mark = self.mark_of(x) if isinstance(x, Tensor) else None
        if zeros and mark is not None and isinstance(out, Tensor):
            self.mark(out, quantized=mark.quantized, stored=mark.stored)

    def saw(
        self, func: Any, args: Sequence[Any], kwargs: Any, out: Any
    ) -> None:
        """Take one call of an operator in."""
        name = func._schema.name.partition('::')[2]
        self._see_reads(args)
        pairs = products_of(name, args, out)
        if pairs:
            self._count(
                pairs, self._functions[-1] if self._functions else (name)
            )
        if func._schema.is_mutable:
            self._see_writes(func, args, kwargs)
        else:
            self._pass_on(name, args, out)

    def _see_reads(self, args: Sequence[Any]) -> None:
        running = self._stack[-1][0]
        for argument in args:
            owners = self._owners.get(id(argument))
            if owners and not any(
                running == owner or running.startswith(f'{owner}.')
                for owner in owners
            ):
                self._read_by.update(dict.fromkeys(owners, running))

    def _see_writes(self, func: Any, args: Sequence[Any], kwargs: Any) -> None:
        for i, argument in enumerate(func._schema.arguments):
            written = argument.alias_info and argument.alias_info.is_write
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            if written and isinstance(value, Tensor):
                memory = _memory(value)
                self._writes[memory] = self._writes.get(memory, 0) + 1

    def _pass_on(self, name: str, args: Sequence[Any], out: Any) -> None:
        marks = [self.mark_of(x) for x in kept_tensors(name, args)]
        known = [mark for mark in marks if mark is not None]
        if not known or len(known) < len(marks):
            return
        quantized = all(mark.quantized for mark in known)
        stored = known[0].stored
        for tensor in out if isinstance(out, list | tuple) else (out,):
            if isinstance(tensor, Tensor) and tensor.dtype == _dtype(args):
                self.mark(tensor, quantized=quantized, stored=stored)

    def _count(self, pairs: list[Pair], function: str) -> None:
        module, kind = self._stack[-1]
        entry = self._products.setdefault(
            (module, function),
            Product(module=module, type=kind, function=function),
        )
        entry.calls += 1
        for pair in pairs:
            marks = self.mark_of(pair.first), self.mark_of(pair.second)
            found = [m is not None and m.quantized for m in marks]
            where = ('none', 'one', 'both')[sum(found)]
            setattr(entry, where, getattr(entry, where) + pair.macs)
            if not all(found) and pair.macs and not entry.reason:
                entry.reason = self._reason(module, kind, function, marks)

    def _reason(
        self,
        module: str,
        kind: str,
        function: str,
        marks: tuple[_Mark | None, _Mark | None],
    ) -> str:
        """Say why a product is not one of two quantized operands."""
        floats = [
            position
            for position, mark in zip(('first', 'second'), marks, strict=True)
            if mark is None or not mark.quantized
        ]
        stored = [mark.stored for mark in marks if mark and mark.stored]
        if module in self._layers:
            return reason_of_layer(
                self._layers[module], function, floats, stored
            )
        foreign = [
            name for name in stored if name.rpartition('.')[0] in self._layers
        ]
        if foreign:
            return (
                f'{kind} multiplies by {foreign[0]} itself, past the '
                'forward of that layer'
            )
        if stored:
            return f'{kind} multiplies by {stored[0]}: no counterpart'
        read = [n for n, reader in self._read_by.items() if reader == module]
        if read:
            return (
                f'{kind} multiplies by what it computes from the weight of '
                f'{read[0]}'
            )
        return f'product of two activations in {kind}: no counterpart'


class _FunctionNames(TorchFunctionMode):
    """Tell a tracer which function of torch the caller asked for."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call on, under the function's name."""
        self._tracer.push(getattr(func, '__name__', str(func)).strip('_'))
        try:
            out = func(*args, **(kwargs or {}))
        finally:
            self._tracer.pop()
        if func is nn.functional.pad:
            value = (kwargs or {}).get('value', args[3] if args[3:] else 0)
            self._tracer.follow_padding(
                args[0] if args else None, out, zeros=not value
            )
        return out


class _Dispatch(TorchDispatchMode):
    """Show a tracer every operator."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._tracer = tracer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call on, then report."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self._tracer.saw(func, args, kwargs, out)
        return out


def _memory(tensor: Any) -> int:
    """Return what views of the same memory have in common."""
    return int(tensor.untyped_storage()._cdata)


def _dtype(args: Sequence[Any]) -> Any:
    first = args[0]
    return (first if isinstance(first, Tensor) else first[0]).dtype


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, no gradient, random numbers as if nothing had run."""
    training = [m for m in model.modules() if m.training]
    devices = {p.device for p in model.parameters() if p.is_cuda}
    model.eval()
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    # One fused kernel would hide all products of an attention.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        for module in training:
            module.training = True
