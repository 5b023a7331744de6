"""Which products read each quantizer's tensor, and what produced it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from taskptq.analysis.sensitivity.roles import owner_of, point_of, role_of
from taskptq.calibration.batches import batch_length
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import float_only
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.prepare.products_ops import kept_tensors, products_of

__all__ = ['PointFacts', 'trace_points', 'weights_of']

Outputs = Callable[[nn.Module, Any], dict[str, Tensor]]
# Operator -> name of what it computes, as users know it.
PRODUCERS = {
    'relu': 'ReLU',
    'silu': 'SiLU',
    'gelu': 'GELU',
    'hardswish': 'Hardswish',
    'hardtanh': 'ReLU6',
    'leaky_relu': 'LeakyReLU',
    '_softmax': 'Softmax',
    'native_layer_norm': 'LayerNorm',
    'native_group_norm': 'GroupNorm',
    'convolution': 'Conv',
    'addmm': 'Linear',
    'mm': 'Linear',
    'bmm': 'Attention',
    'add': 'sum',
    'mul': 'product',
    'cat': 'concatenation',
}
# They repeat or mix neighbours, so that the distribution stays.
PASSING = ('upsample_nearest2d', 'upsample_bilinear2d', 'avg_pool2d')


@dataclass(frozen=True, kw_only=True)
class PointFacts:
    """Structure around one quantizer.

    Args:
        name: Qualified name of the quantizer.
        layer: Counterpart that owns it.
        point: See ``record.POINTS``.
        role: See ``roles.role_of``.
        macs: Multiply-accumulates per image of the products that read it.
        elements: Values of the tensor per image; of a weight, its values.
        producer: What computed the tensor, '' if unknown.
    """

    name: str
    layer: str
    point: str
    role: str
    macs: int
    elements: int
    producer: str


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weight of each weight quantizer, by its name."""
    return {
        f'{name}.{slot}': getattr(module, parameter)
        for name, module in quant_modules(model)
        for parameter, slot in module.active_slots()
        if getattr(module, slot) is not None
    }


def trace_points(
    model: nn.Module, batch: Any, *, outputs: Outputs
) -> dict[str, PointFacts]:
    """Run the float model once and look at every calibrated quantizer.

    Args:
        model: Prepared and calibrated.
        batch: Collated batch.
        outputs: ``outputs(model, batch)`` runs the model and returns its
            head's outputs by name.

    Returns:
        Facts by name, in the model's order; quantizers that the batch does
        not reach have no multiply-accumulates.
    """
    tracer = _Tracer(model)
    with ExitStack() as stack:
        stack.enter_context(calibration_mode(model))
        stack.enter_context(float_only(model))
        stack.enter_context(tracer.active())
        heads = outputs(model, batch)
    return tracer.facts(heads, num_images=max(1, batch_length(batch)))


class _Tracer(TorchDispatchMode):
    """Follow tensors from quantizers to products, see :func:`trace_points`.

    Three things are known of a tensor: the quantizers whose values it holds
    unchanged, what computed it, and the layers of the last products before
    it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.quantizers = {
            name: quantizer
            for name, quantizer in quantizers(model)
            if quantizer.calibrated
        }
        self.layers: dict[str, QuantModule] = dict(quant_modules(model))
        self.weights = {
            name: weight
            for name, weight in weights_of(model).items()
            if name in self.quantizers
        }
        self.macs: dict[str, int] = dict.fromkeys(self.quantizers, 0)
        self.elements: dict[str, int] = {}
        self.origins: dict[str, str] = {}
        self.first = ''
        self._held: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._producers: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._sources: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._gates: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        for name, weight in self.weights.items():
            known = self._held.get(weight, frozenset())
            self._held[weight] = known | {name}
            self.elements[name] = weight.numel()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Watch every call inside."""
        handles = [
            quantizer.register_forward_hook(self._reader(name))
            for name, quantizer in self.quantizers.items()
            if not is_weight_quantizer(name)
        ]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def facts(
        self, heads: dict[str, Tensor], *, num_images: int
    ) -> dict[str, PointFacts]:
        """Return what was seen; ``heads`` are the model's outputs."""
        last: set[str] = set()
        for head in heads.values():
            last |= self._sources.get(head, frozenset())
        found = {}
        for name in self.quantizers:
            layer = owner_of(name)
            per_image = 1 if name in self.weights else num_images
            found[name] = PointFacts(
                name=name,
                layer=layer,
                point=point_of(name),
                role=role_of(
                    name,
                    self.layers.get(layer, self.quantizers[name]),
                    is_first=layer == self.first,
                    is_head=layer in last,
                ),
                macs=self.macs[name] // num_images,
                elements=self.elements.get(name, 0) // per_image,
                producer=self.origins.get(name, ''),
            )
        return found

    def _reader(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            self.elements[name] = self.elements.get(name, 0) + out.numel()
            self.origins.setdefault(name, self._producers.get(args[0], ''))
            # A tensor of its own: other readers may have other quantizers.
            view = out.view_as(out)
            self._held[view] = frozenset({name})
            return view

        return hook

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call on, then note what is known of the result."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.partition('::')[2]
        results = [out] if isinstance(out, Tensor) else _tensors(out)
        pairs = products_of(name, args, out)
        if pairs:
            sources = self._count(pairs)
        else:
            sources = self._union(self._sources, _tensors(args))
        kept = kept_tensors(name, args)
        held = self._union(self._held, kept)
        producer = self._producer(name, args, kept)
        if name == 'sigmoid':
            self._gates[out] = weakref.ref(args[0])
        for tensor in results:
            self._sources[tensor] = sources
            self._held[tensor] = held
            self._producers[tensor] = producer
        return out

    def _count(self, pairs: Sequence[Any]) -> frozenset[str]:
        """Count products; return the layers that they belong to."""
        names: set[str] = set()
        for pair in pairs:
            operands = [x for x in (pair.first, pair.second) if x is not None]
            read = self._union(self._held, operands)
            for name in read:
                self.macs[name] += pair.macs
            names |= read
        layers = frozenset(owner_of(name) for name in names)
        if layers and not self.first:
            self.first = min(layers)
        return layers

    def _producer(
        self, name: str, args: Sequence[Any], kept: Sequence[Tensor]
    ) -> str:
        if name in PASSING:
            kept = [args[0]]
        if name in ('mul', 'mul_') and self._is_gated(args):
            return 'SiLU'
        if kept:
            found = {self._producers.get(x, '') for x in kept}
            return found.pop() if len(found) == 1 else 'concatenation'
        plain = name if name in PRODUCERS else name.rstrip('_')
        return PRODUCERS.get(plain, plain)

    def _is_gated(self, factors: Sequence[Any]) -> bool:
        """Whether a product is x sigmoid(x), which is a SiLU."""
        for gate, other in (factors[:2], factors[1::-1]):
            source = (
                self._gates.get(gate) if isinstance(gate, Tensor) else None
            )
            if source is not None and source() is other:
                return True
        return False

    @staticmethod
    def _union(
        table: WeakTensorKeyDictionary, tensors: Sequence[Tensor]
    ) -> frozenset[str]:
        found: frozenset[str] = frozenset()
        for tensor in tensors:
            found |= table.get(tensor, frozenset())
        return found


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors among arguments and in lists of them."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in _tensors(value)]
    return []
