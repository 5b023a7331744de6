"""Which weights a rate counts, and which stay dense by their role."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, nn

from taskptq.core import Quantizer
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.modules.conv import is_depthwise
from taskptq.prepare.patterns import matches
from taskptq.prepare.sparsity import SparsityConfig


@dataclass(frozen=True, kw_only=True)
class Prunable:
    """One weight that may lose elements.

    Args:
        name: Qualified name of the parameter.
        module: Its counterpart.
        parameter: Its name there.
        quantizers: Weight quantizers of all layers that share it.
    """

    name: str
    module: QuantModule
    parameter: str
    quantizers: tuple[Quantizer, ...]

    @property
    def weight(self) -> Tensor:
        """The float weight, without gradients."""
        weight: Tensor = getattr(self.module, self.parameter)
        return weight.detach()

    @property
    def ch_axis(self) -> int:
        """Axis of output channels."""
        return self.module.weight_axis(self.parameter)


def find_prunable(
    model: nn.Module,
    config: SparsityConfig,
    *,
    edges: Collection[str] = (),
) -> tuple[list[Prunable], dict[str, str]]:
    """Sort the weights that have a quantizer.

    Args:
        model: Swapped model.
        config: ``keep_dense``.
        edges: Qualified names of the first and last layers.

    Returns:
        Prunable weights in definition order; and why others stay dense, by
        the qualified name of the weight.

    Raises:
        ValueError: If no weight is prunable.
    """
    groups: dict[int, list[tuple[str, QuantModule, str, Quantizer]]] = {}
    dense: dict[str, str] = {}
    for layer, module in quant_modules(model):
        for parameter, slot in module.active_slots():
            name = f'{layer}.{parameter}'.lstrip('.')
            quantizer = getattr(module, slot)
            weight: Tensor = getattr(module, parameter)
            reason = _role(layer, module, edges) or _kept(layer, config)
            if not isinstance(quantizer, Quantizer):
                reason = 'float in qconfig'
            elif weight.dim() < 2:
                reason = 'no matrix'
            if reason:
                dense[name] = reason
            else:
                found = groups.setdefault(id(weight), [])
                found.append((name, module, parameter, quantizer))
    prunable = [
        Prunable(
            name=group[0][0],
            module=group[0][1],
            parameter=group[0][2],
            quantizers=tuple(member[3] for member in group),
        )
        for group in groups.values()
    ]
    if not prunable:
        raise ValueError(
            f'{type(model).__name__} has no prunable weight: all are first '
            'or last layers, depthwise, or named in keep_dense or keep_float'
        )
    return prunable, dense


def _role(layer: str, module: QuantModule, edges: Collection[str]) -> str:
    if layer in edges:
        return 'first or last layer'
    return 'depthwise' if is_depthwise(module) else ''


def _kept(layer: str, config: SparsityConfig) -> str:
    for pattern in config.keep_dense:
        if matches(layer, pattern):
            return f'qconfig.sparsity.keep_dense {pattern!r}'
    return ''
