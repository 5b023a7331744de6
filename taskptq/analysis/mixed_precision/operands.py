"""Which quantizers meet in which product."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import Quantizer
from taskptq.core.switches import quantizing
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.prepare.products_ops import kept_tensors, products_of

__all__ = ['Product', 'trace_operands']

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True, kw_only=True)
class Product:
    """All products of the same two operands.

    Args:
        first: Quantizers of the left operand; empty if it is float. A tensor
            joined from several has several.
        second: Quantizers of the right operand.
        macs: Multiply-accumulates, over the traced batches.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    macs: int


def trace_operands(
    model: nn.Module, batches: Sequence[Any], *, forward: Forward
) -> list[Product]:
    """Run a calibrated model and see which quantizers gave each operand.

    Args:
        model: Prepared and calibrated.
        batches: Collated batches that together call every layer.
        forward: Runs the model on one batch.
    """
    tracer = _Tracer()
    with (
        calibration_mode(model),
        torch.random.fork_rng(),
        quantizing(model),
        _watched(model, tracer),
        tracer,
    ):
        for batch in batches:
            forward(model, batch)
    return [
        Product(first=first, second=second, macs=macs)
        for (first, second), macs in tracer.macs.items()
    ]


class _Tracer(TorchDispatchMode):
    """Follow the outputs of quantizers to the products that read them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
        self._sources: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def mark(self, tensor: Any, names: tuple[str, ...]) -> None:
        """Remember the quantizers that gave a tensor."""
        if isinstance(tensor, Tensor) and names:
            self._sources[tensor] = names

    def _names(self, tensor: Tensor | None) -> tuple[str, ...]:
        found = None if tensor is None else self._sources.get(tensor)
        return found or ()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call on, then count its products and follow its values."""
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition('::')[2]
        for pair in products_of(name, args, out):
            key = self._names(pair.first), self._names(pair.second)
            self.macs[key] = self.macs.get(key, 0) + pair.macs
        kept = [self._names(tensor) for tensor in kept_tensors(name, args)]
        if kept and all(kept):
            names = tuple(dict.fromkeys(n for found in kept for n in found))
            for tensor in out if isinstance(out, list | tuple) else (out,):
                self.mark(tensor, names)
        return out


@contextmanager
def _watched(model: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """Mark what quantizers and counterparts' weights give."""
    handles = [
        module.register_forward_hook(_marking(tracer, name))
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
    ]
    modules = quant_modules(model)
    for name, module in modules:
        module.__dict__['quantized_weight'] = _weight(tracer, name, module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for _, module in modules:
            del module.__dict__['quantized_weight']


def _marking(tracer: _Tracer, name: str) -> Callable[..., None]:
    def mark(module: Quantizer, _: Any, out: Any) -> None:
        if module.enabled and module.calibrated and not module.frozen:
            tracer.mark(out, (name,))

    return mark


def _weight(
    tracer: _Tracer, name: str, module: QuantModule
) -> Callable[..., Tensor]:
    original = module.quantized_weight

    def quantized_weight(parameter: str = 'weight') -> Tensor:
        weight = original(parameter)
        quantizer = getattr(module, module.weight_slots[parameter])
        if quantizer is not None and quantizer.calibrated:
            slot = module.weight_slots[parameter]
            tracer.mark(weight, (f'{name}.{slot}',))
        return weight

    return quantized_weight
