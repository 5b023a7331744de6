"""The modules of a model, and every place that holds one."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

# How deep plain containers are searched, and up to which length: a list of
# modules is short, a list of numbers may not be.
MAX_DEPTH = 5
MAX_LENGTH = 10_000
_DICTS = (dict, OrderedDict, defaultdict)
_OWN = {'_modules', '_parameters', '_buffers'}


def is_scripted(module: nn.Module) -> bool:
    """Whether a module was scripted or traced, so that nothing in it shows."""
    return isinstance(module, torch.jit.ScriptModule)


def open_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what ``named_modules`` does, but nothing inside closed modules.

    Scripted modules come as one module; what computes a reparametrized
    weight does not come at all.
    """
    yield from _visit(model, '', set())


def _visit(
    module: nn.Module, name: str, seen: set[int]
) -> Iterator[tuple[str, nn.Module]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    if is_scripted(module):
        return
    hidden = parametrize.is_parametrized(module)
    for child_name, child in list(module._modules.items()):
        if child is None or (hidden and child_name == 'parametrizations'):
            continue
        path = f'{name}.{child_name}' if name else child_name
        yield from _visit(child, path, seen)


def parent_counts(model: nn.Module) -> dict[int, int]:
    """Return id of a module -> under how many names modules register it."""
    counts: dict[int, int] = defaultdict(int)
    for _, module in open_modules(model):
        if is_scripted(module):
            continue
        for child in module._modules.values():
            if child is not None:
                counts[id(child)] += 1
    return counts


def parameter_owners(
    model: nn.Module,
) -> dict[int, list[tuple[str, nn.Module, str]]]:
    """Return id of a parameter -> (layer, module, name) of all that own it."""
    owners: dict[int, list[tuple[str, nn.Module, str]]] = defaultdict(list)
    for name, module in open_modules(model):
        if is_scripted(module):
            for path, parameter in module.named_parameters():
                owners[id(parameter)].append((name, module, path))
            continue
        for path, own in module._parameters.items():
            if own is not None:
                owners[id(own)].append((name, module, path))
    return owners


def replace_modules(model: nn.Module, new: Mapping[int, nn.Module]) -> None:
    """Put modules in the place of others, wherever the model holds these.

    That is: as children, as plain attributes, and in lists, tuples, dicts
    and sets that are attributes.

    Args:
        model: Changed in place.
        new: id of a module of the model -> what takes its place.
    """
    # The new ones took over children that are replaced, too.
    holders = [module for _, module in open_modules(model)]
    holders += list(new.values())
    for holder in holders:
        if is_scripted(holder):
            continue
        for name, child in list(holder._modules.items()):
            if child is not None and id(child) in new:
                holder._modules[name] = new[id(child)]
        for name, value in list(vars(holder).items()):
            if name in _OWN or name.endswith('_hooks'):
                continue
            changed = _substituted(value, new, MAX_DEPTH)
            if changed is not value:
                vars(holder)[name] = changed


def _substituted(value: Any, new: Mapping[int, nn.Module], depth: int) -> Any:
    """Return a value with modules replaced: itself, except a tuple."""
    if isinstance(value, nn.Module):
        return new.get(id(value), value)
    if not depth or not isinstance(value, (*_DICTS, list, tuple, set)):
        return value
    if len(value) > MAX_LENGTH:
        return value
    if isinstance(value, list):
        _substitute_items(value, enumerate(list(value)), new, depth)
    elif isinstance(value, dict) and type(value) in _DICTS:
        _substitute_items(value, list(value.items()), new, depth)
    elif isinstance(value, set):
        for item in [x for x in value if id(x) in new]:
            value.remove(item)
            value.add(new[id(item)])
    elif isinstance(value, tuple):
        items = [_substituted(item, new, depth - 1) for item in value]
        if any(a is not b for a, b in zip(items, value, strict=True)):
            kind: Any = type(value)
            named = hasattr(kind, '_fields')
            return kind(*items) if named else kind(items)
    return value


def _substitute_items(
    value: Any, items: Any, new: Mapping[int, nn.Module], depth: int
) -> None:
    for key, item in items:
        changed = _substituted(item, new, depth - 1)
        if changed is not item:
            value[key] = changed
