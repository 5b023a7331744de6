"""Run a float module and what is to take its place side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from taskptq.modules.base import QuantModule, Scheme
from taskptq.prepare.difference import difference, tensors
from taskptq.prepare.fuse import folded_parameters
from taskptq.prepare.plain_weights import (
    baked_copy,
    is_computed,
    shallow_copy,
)

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Check:
    """A layer that is to be swapped.

    Args:
        name: Qualified name.
        module: Float module.
        cls: Class of its counterpart.
        scheme: Recipes of its quantizers.
    """

    name: str
    module: nn.Module
    cls: type[QuantModule]
    scheme: Scheme


def counterpart(check: Check) -> QuantModule:
    """Return what a layer is to become, with its quantizers off."""
    module = check.module
    plain = baked_copy(module) if is_computed(module) else module
    quant = check.cls.from_float(shallow_copy(plain), scheme=check.scheme)
    return quant.to(_device(module))


def _device(module: nn.Module) -> torch.device:
    parameter = next(module.parameters(), None)
    return torch.device('cpu') if parameter is None else parameter.device


def outputs(
    quant: nn.Module,
    module: nn.Module,
    inputs: tuple[Any, Any],
    output: Any,
) -> tuple[Any, Any]:
    """Return the outputs of a counterpart and of its float module.

    Half precision says nothing about 1e-4, so both then run in float32.
    """
    args, kwargs = inputs
    if not _is_half((inputs, output)) and not _is_half(
        list(module.parameters())
    ):
        return quant(*args, **kwargs), output
    args, kwargs = _map_tensors(inputs, _single)
    found, expected = (
        functional_call(m, _single_state(m), cloned(args), cloned(kwargs))
        for m in (quant, module)
    )
    return found, expected


def fold_gap(
    layer: nn.Module, norm: nn.Module, inputs: tuple[Any, Any], output: Tensor
) -> float:
    """Return how far a folded layer lies from the layer and its norm.

    Args:
        layer: Float layer; left as it is, like the norm.
        norm: The norm that follows it.
        inputs: Arguments and keyword arguments of the layer.
        output: What the layer gave.
    """
    args, kwargs = inputs
    plain = baked_copy(layer) if is_computed(layer) else shallow_copy(layer)
    norm = shallow_copy(norm)
    if _is_half([*plain.parameters(), *norm.parameters(), *tensors(args)]):
        args, kwargs = _map_tensors((args, kwargs), _single)
        plain, norm = _single_copy(plain), _single_copy(norm)
        output = plain(*args, **kwargs)
    expected = norm(output)
    weight, bias = folded_parameters(plain, norm)
    plain._parameters['weight'] = nn.Parameter(weight, requires_grad=False)
    plain._parameters['bias'] = nn.Parameter(bias, requires_grad=False)
    return difference(plain(*args, **kwargs), expected)


def _is_half(value: Any) -> bool:
    return any(x.dtype in _HALF for x in tensors(value))


def _single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x


def _single_state(module: nn.Module) -> dict[str, Tensor]:
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: _single(value) for name, value in state.items()}


def _single_copy(module: nn.Module) -> nn.Module:
    twin = shallow_copy(module)
    for name, value in twin._parameters.items():
        if value is not None:
            twin._parameters[name] = nn.Parameter(
                _single(value), requires_grad=False
            )
    for name, buffer in twin._buffers.items():
        if buffer is not None:
            twin._buffers[name] = _single(buffer)
    return twin


def cloned(value: Any) -> Any:
    """Copy the tensors of a nesting; what is one tensor stays one."""
    made: dict[Any, Tensor] = {}

    def clone(x: Tensor) -> Tensor:
        if x.layout != torch.strided or x.is_nested:
            return x.clone()
        key = (x.data_ptr(), x.shape, x.stride(), x.dtype)
        if x.numel() == 0 or key not in made:
            made[key] = x.clone()
        return made[key]

    return _map_tensors(value, clone)


def _map_tensors(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if type(value) in (list, tuple):
        return type(value)(_map_tensors(item, fn) for item in value)
    if type(value) is dict:
        return {key: _map_tensors(item, fn) for key, item in value.items()}
    return value
