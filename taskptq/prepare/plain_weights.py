"""Layers whose weight is computed or shared: give each a plain one.

A quantizer belongs to one parameter of one layer. Where a weight follows
from others at each call (weight norm, spectral norm, pruning, weight
standardization) its value in eval mode is stored instead; where several
layers share one, each quantized layer gets a copy of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from taskptq.hosts.class_lookup import plain_class
from taskptq.hosts.registry import COMPUTED_WEIGHTS, dotted
from taskptq.prepare.tree import open_modules, parameter_owners

_HOOKS = (WeightNorm, SpectralNorm, prune.BasePruningMethod)


def is_plain(module: nn.Module, parameter: str) -> bool:
    """Whether a module uses one of its own parameters as it is stored."""
    return (
        plain_class(module) is type(module)
        and isinstance(module._parameters.get(parameter), nn.Parameter)
        and not any(isinstance(h, _HOOKS) for h in _pre_hooks(module))
    )


def is_computed(module: nn.Module) -> bool:
    """Whether a module computes a weight in a way that ``bake`` knows."""
    return (
        dotted(type(module)) in COMPUTED_WEIGHTS
        or parametrize.is_parametrized(module)
        or any(isinstance(h, _HOOKS) for h in _pre_hooks(module))
    )


def check_plain(
    module: nn.Module, parameters: Iterable[str], *, name: str
) -> None:
    """Refuse a layer whose weight is not a parameter of its own.

    Raises:
        ValueError: Names the layer and the ways out.
    """
    for parameter in parameters:
        own = module._parameters.get(parameter)
        if own is None and getattr(module, parameter, None) is not None:
            raise ValueError(
                f'{name}.{parameter} is computed, not a parameter of this '
                f'{type(module).__name__}, so it cannot be quantized: store '
                'its value as a parameter before quantizing, or keep the '
                f'layer float with qconfig.keep_float=[{name!r}]'
            )


@torch.no_grad()
def computed_values(module: Any) -> dict[str, Tensor]:
    """Return the weights that a layer computes, as eval mode has them."""
    values: dict[str, Tensor] = {}
    training = module.training
    module.eval()
    if parametrize.is_parametrized(module):
        for name in module.parametrizations:
            values[name] = getattr(module, name)
    for hook in _pre_hooks(module):
        if isinstance(hook, WeightNorm):
            values[hook.name] = hook.compute_weight(module)
        elif isinstance(hook, SpectralNorm):
            values[hook.name] = hook.compute_weight(
                module, do_power_iteration=False
            )
        elif isinstance(hook, prune.BasePruningMethod):
            values[_pruned(hook)] = hook.apply_mask(module)
    if dotted(type(module)) in COMPUTED_WEIGHTS:
        values['weight'] = _standardized(module)
    module.train(training)
    return {name: value.detach().clone() for name, value in values.items()}


@torch.no_grad()
def bake(module: nn.Module) -> None:
    """Store the computed weights of a layer as plain parameters, in place.

    The values are those of eval mode; what they came from is dropped.

    Args:
        module: One that ``is_computed``.
    """
    values = computed_values(module)
    cls = plain_class(module)
    for name in values:
        if parametrize.is_parametrized(module, name):
            parametrize.remove_parametrizations(module, name)
    for hook in list(_pre_hooks(module)):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, _pruned(hook))
    if type(module) is not cls:
        for name in ('weight_gamma', 'weight_beta'):
            module._buffers.pop(name, None)
        module.__class__ = cls
    for name, value in values.items():
        module._parameters[name] = nn.Parameter(value)


def baked_copy(module: nn.Module) -> nn.Module:
    """Return a layer as ``bake`` would leave it, and the layer as it was."""
    values = computed_values(module)
    twin = shallow_copy(module, plain_class(module))
    twin._modules.pop('parametrizations', None)
    for standardized in ('weight_gamma', 'weight_beta'):
        twin._buffers.pop(standardized, None)
    for name, value in values.items():
        vars(twin).pop(name, None)
        for made_from in ('g', 'v', 'u', 'orig', 'mask'):
            twin._parameters.pop(f'{name}_{made_from}', None)
            twin._buffers.pop(f'{name}_{made_from}', None)
        twin._parameters[name] = nn.Parameter(value)
    return twin


def shallow_copy(
    module: nn.Module, cls: type[nn.Module] | None = None
) -> nn.Module:
    """Return a module that shares parameters and children, without hooks.

    Args:
        module: Left as it is.
        cls: Class of the copy; None is the module's own.
    """
    twin: nn.Module = object.__new__(cls or type(module))
    nn.Module.__init__(twin)
    fresh = dict(vars(twin))
    for name, value in vars(module).items():
        if not name.endswith('_hooks'):
            fresh[name] = value.copy() if isinstance(value, dict) else value
    vars(twin).update(fresh)
    return twin


def _standardized(module: Any) -> Tensor:
    """Return what a ConvWS2d or ConvAWS2d convolves with."""
    weight: Tensor = module.weight
    if hasattr(module, 'weight_gamma'):
        weight = module._get_weight(weight)
        return weight
    flat = weight.flatten(1)
    shape = (-1, 1, 1, 1)
    mean = flat.mean(dim=1, keepdim=True).view(shape)
    std = flat.std(dim=1, keepdim=True).view(shape)
    standardized: Tensor = (weight - mean) / (std + module.eps)
    return standardized


def _pruned(hook: Any) -> str:
    name: str = hook._tensor_name
    return name


def shared_parameters(
    model: nn.Module, layers: Mapping[str, Collection[str]]
) -> list[str]:
    """Return the weights of quantized layers that others own as well.

    Of several quantized layers with one parameter the first keeps it, unless
    a layer that stays float owns it, too.

    Args:
        model: Before swapping.
        layers: Qualified name -> names of the weights to be quantized.

    Returns:
        ``layer.parameter`` of all that need a copy of their own.
    """
    untied = []
    for owners in parameter_owners(model).values():
        quantized = [
            f'{name}.{path}'
            for name, _, path in owners
            if path in layers.get(name, ())
        ]
        if len(owners) > 1 and quantized:
            kept = 1 if len(quantized) == len(owners) else 0
            untied += quantized[kept:]
    return untied


@torch.no_grad()
def untie(model: nn.Module, names: Iterable[str]) -> None:
    """Give parameters their own copies, in place.

    Args:
        model: Changed in place.
        names: ``layer.parameter`` each.

    Raises:
        ValueError: If there is no such parameter.
    """
    modules = dict(open_modules(model))
    places = []
    for name in names:
        layer, _, parameter = name.rpartition('.')
        module = modules.get(layer)
        own = None if module is None else module._parameters.get(parameter)
        if module is None or own is None:
            raise ValueError(
                f'{name!r} is to get a copy of its own, but the model has no '
                'such parameter'
            )
        places.append((module, parameter, own))
    for module, parameter, own in places:
        value: Tensor = own.detach().clone()
        module._parameters[parameter] = nn.Parameter(
            value, requires_grad=own.requires_grad
        )


def _pre_hooks(module: nn.Module) -> Iterable[Any]:
    return module._forward_pre_hooks.values()
