"""A choice of bits as settings of a qconfig, and applied to a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from taskptq.analysis.mixed_precision.cost import Choice, Problem
from taskptq.analysis.mixed_precision.units import FLOAT, Bits, Key
from taskptq.analysis.sensitivity.roles import point_of
from taskptq.calibration.calibrate import calibration_mode
from taskptq.calibration.unreached import activation_quantizers
from taskptq.core import Quantizer, observing
from taskptq.core.reduce import reduce_observers
from taskptq.modules.base import QuantModule, Scheme, quant_modules
from taskptq.prepare import QConfig

__all__ = [
    'ChangedPoints',
    'changes_of',
    'exact_pattern',
    'settings_of',
    'with_settings',
]

Forward = Callable[[nn.Module, Any], Any]


def changes_of(problem: Problem, choice: Choice) -> dict[Key, Bits]:
    """Return the units that a choice gives other bits than the recipe."""
    return {
        key: choice[key]
        for key, unit in problem.units.items()
        if choice[key] != unit.num_bits
    }


def settings_of(changes: Mapping[Key, Bits]) -> dict[str, list[Any]]:
    """Write changes as settings of a qconfig.

    Args:
        changes: (layer, point) -> bits.

    Returns:
        ``overrides``, one for each layer with other bits, and
        ``keep_float`` with the layers that are float.

    >>> settings_of({('conv', 'activation'): 16, ('fc', 'weight'): 'float'})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'overrides': [{'pattern': 'conv', 'activation': {'num_bits': 16}}],
     'keep_float': ['fc']}
    """
    overrides: dict[str, dict[str, Any]] = {}
    kept: dict[str, None] = {}
    for (layer, point), bits in changes.items():
        if bits == FLOAT:
            kept[exact_pattern(layer)] = None
        else:
            overrides.setdefault(layer, {})[point] = {'num_bits': bits}
    return {
        'overrides': [
            {'pattern': exact_pattern(layer), **points}
            for layer, points in overrides.items()
        ],
        'keep_float': list(kept),
    }


def with_settings(
    qconfig: QConfig, settings: Mapping[str, Sequence[Any]]
) -> QConfig:
    """Return a qconfig with further overrides, which win, and float layers.

    Args:
        qconfig: The recipe's.
        settings: From :func:`settings_of`.
    """
    plain = qconfig.to_dict()
    for key, added in settings.items():
        plain[key] = [*plain[key], *added]
    return QConfig.from_dict(plain, resolve=qconfig.resolve)


def exact_pattern(name: str) -> str:
    """Return the pattern that matches one name only."""
    return f're:{re.escape(name)}' if re.search(r'[][*?]', name) else name


class ChangedPoints:
    """Quantizers of some points replaced, in place; can be undone.

    The result is what preparing and calibrating the float model with the
    new qconfig would give, since ranges do not depend on each other.

    Args:
        model: Prepared and calibrated with another qconfig.
        qconfig: Qconfig with the changes, see ``with_settings``.
        changed: (layer, point) -> bits of every change.
        edges: First and last layers.
    """

    def __init__(
        self,
        model: nn.Module,
        qconfig: QConfig,
        *,
        changed: Mapping[Key, Bits],
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
            if any(changed[layer, point] == FLOAT for point in own):
                scheme = Scheme()
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
