"""A choice of bits as overrides of a qconfig, and applied to a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from taskptq.analysis.mixed_precision.cost import Choice, Key, Problem
from taskptq.analysis.mixed_precision.units import FLOAT, Bits
from taskptq.analysis.sensitivity.roles import point_of
from taskptq.calibration.calibrate import calibration_mode
from taskptq.calibration.unreached import activation_quantizers
from taskptq.core import Quantizer, observing
from taskptq.core.reduce import reduce_observers
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.modules.sharing import SharedInputs
from taskptq.prepare import QConfig

__all__ = ['ChangedPoints', 'changes_of', 'overrides_of', 'with_overrides']

Forward = Callable[[nn.Module, Any], Any]


def changes_of(problem: Problem, choice: Choice) -> dict[Key, Bits]:
    """Return the units that a choice gives other bits than the recipe."""
    return {
        key: choice[key]
        for key, unit in problem.units.items()
        if choice[key] != unit.num_bits
    }


def overrides_of(
    changes: Mapping[Key, Bits], model: nn.Module
) -> list[dict[str, Any]]:
    """Write changes as overrides, one for each layer.

    Args:
        changes: (layer, point) -> bits.
        model: The quantized model. Layers that read a common tensor, which
            their attention quantizes for them, get an override of their own
            where it becomes float.
    """
    modules = dict(quant_modules(model))
    settings: dict[str, dict[str, Any]] = {}
    for (layer, point), bits in changes.items():
        value: Any = False if bits == FLOAT else {'num_bits': bits}
        settings.setdefault(layer, {})[point] = value
        if value is False:
            for reader in _readers(layer, modules[layer]):
                settings.setdefault(reader, {})['activation'] = False
    return [
        {'pattern': _exact(layer), **points}
        for layer, points in settings.items()
    ]


def with_overrides(
    qconfig: QConfig, overrides: Sequence[Mapping[str, Any]]
) -> QConfig:
    """Return a qconfig with further overrides, which win."""
    plain = qconfig.to_dict()
    plain['overrides'] = [*plain['overrides'], *overrides]
    return QConfig.from_dict(plain, resolve=qconfig.resolve)


def _exact(name: str) -> str:
    """Return the pattern that matches one name only."""
    return f're:{re.escape(name)}' if re.search(r'[][*?]', name) else name


def _readers(layer: str, module: nn.Module) -> Iterator[str]:
    if isinstance(module, SharedInputs):
        for readers in module.shared_inputs().values():
            yield from (f'{layer}.{reader}' for reader in readers)


class ChangedPoints:
    """Quantizers of some points replaced, in place; can be undone.

    The result is what preparing and calibrating the float model with the
    new qconfig would give, since ranges do not depend on each other.

    Args:
        model: Prepared and calibrated with another qconfig.
        qconfig: Qconfig with the overrides of the changes.
        changed: (layer, point) of every change.
        edges: First and last layers.
    """

    def __init__(
        self,
        model: nn.Module,
        qconfig: QConfig,
        *,
        changed: Collection[Key],
        edges: Collection[str],
    ) -> None:
        self._model = model
        self._before: list[tuple[QuantModule, str, Any]] = []
        points: dict[str, set[str]] = {}
        for layer, point in changed:
            points.setdefault(layer, set()).add(point)
        modules = dict(quant_modules(model))
        for layer, own in points.items():
            scheme = qconfig.scheme(layer, edge=layer in edges)
            fresh = type(modules[layer]).from_float(
                modules[layer], scheme=scheme
            )
            self._replace(modules[layer], fresh, own)

    def _replace(
        self, module: QuantModule, fresh: QuantModule, points: Collection[str]
    ) -> None:
        old = {
            name: child
            for name, child in module._modules.items()
            if isinstance(child, Quantizer)
        }
        for name, quantizer in old.items():
            new = getattr(fresh, name)
            raised = new is not None and (
                new.spec.num_bits > quantizer.spec.num_bits
            )
            if point_of(name) in points or raised:
                self._before.append((module, name, quantizer))
                setattr(module, name, new)

    def calibrate(self, batches: Sequence[Any], *, forward: Forward) -> None:
        """Set the ranges of the new quantizers: one pass over the data.

        Args:
            batches: Calibration batches of this rank.
            forward: Runs the model on one batch.
        """
        parameter = next(self._model.parameters(), None)
        if parameter is not None:
            self._model.to(parameter.device)
        activations = activation_quantizers(self._model)
        if activations:
            with calibration_mode(self._model), observing(self._model):
                for batch in batches:
                    forward(self._model, batch)
        reduce_observers([q.observer for _, q in activations if q.observer])
        for _, quantizer in activations:
            quantizer.calibrate()
        for _, module in quant_modules(self._model):
            module.calibrate_weights()

    @torch.no_grad()
    def undo(self) -> None:
        """Put the former quantizers back."""
        for module, name, quantizer in self._before:
            setattr(module, name, quantizer)
        self._before.clear()
