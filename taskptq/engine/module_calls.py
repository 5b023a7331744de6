"""Calls of modules: the tensors that they take, and everything else."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from taskptq.engine.adapters import name_tensors
from taskptq.modules.call_sites import begins_call

__all__ = ['Call', 'captured_calls', 'tensors_of']

# What a call may hold beside tensors; it is the same at every call.
CONSTANTS = (bool, float, int, str, type(None))


@dataclass(frozen=True)
class Slot:
    """Place of a tensor in a call."""

    index: int


@dataclass(frozen=True, kw_only=True)
class Call:
    """Arguments of a call.

    Args:
        template: Positional and named arguments, with a ``Slot`` in the
            place of each tensor.
        tensors: The tensors.
        unknown: Name of the type of an argument that is neither a tensor nor
            a constant; None if there is none.
        differs: Whether a later call had another template.
    """

    template: Any
    tensors: tuple[Tensor, ...]
    unknown: str | None = None
    differs: bool = False

    def arguments(
        self, tensors: tuple[Tensor, ...]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and named arguments with other tensors."""
        args, kwargs = _filled(self.template, tensors)
        return args, kwargs


def _filled(template: Any, tensors: tuple[Tensor, ...]) -> Any:
    if isinstance(template, Slot):
        return tensors[template.index]
    if isinstance(template, Mapping):
        return {k: _filled(x, tensors) for k, x in template.items()}
    if isinstance(template, (list, tuple)):
        found = (_filled(x, tensors) for x in template)
        return tuple(found) if isinstance(template, tuple) else list(found)
    return template


def tensors_of(value: Any) -> tuple[Tensor, ...]:
    """Return the tensors of nested sequences and mappings, in order."""
    return tuple(tensor for _, tensor in name_tensors(value))


def call_of(
    forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
) -> Call:
    """Describe a call.

    Args:
        forward: What is called: names that it knows become places.
        args: Positional arguments.
        kwargs: Named arguments.
    """
    bound = inspect.signature(forward).bind(*args, **kwargs)
    given = (tuple(bound.args), dict(bound.kwargs))
    unknown: list[str] = []
    tensors: list[Tensor] = []

    def described(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return Slot(len(tensors) - 1)
        if isinstance(value, Mapping):
            return {k: described(x) for k, x in value.items()}
        if isinstance(value, (list, tuple)):
            found = [described(x) for x in value]
            return tuple(found) if isinstance(value, tuple) else found
        if not isinstance(value, CONSTANTS):
            unknown.append(type(value).__name__)
            return None
        return value

    template = described(given)
    return Call(
        template=template,
        tensors=tuple(tensors),
        unknown=unknown[0] if unknown else None,
    )


@torch.no_grad()
def captured_calls(
    modules: Mapping[str, nn.Module], run: Callable[[], Any]
) -> dict[str, Call]:
    """Return the first call of each module that is called.

    Calls with empty tensors, such as of no box, do not count.

    Args:
        modules: Modules by name.
        run: Runs the model.
    """
    calls: dict[str, Call] = {}

    def watched(name: str, forward: Callable[..., Any]) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = call_of(forward, args, kwargs)
            if all(tensor.numel() for tensor in found.tensors):
                first = calls.setdefault(name, found)
                if found.template != first.template:
                    calls[name] = replace(first, differs=True)
            return forward(*args, **kwargs)

        begins_call(call)
        return call

    with ExitStack() as stack:
        for name, module in modules.items():
            function = watched(name, module.forward)
            stack.enter_context(mock.patch.object(module, 'forward', function))
        run()
    return calls
