"""What the tables of host classes say about a module or a model."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from taskptq.core.settings import refuse
from taskptq.hosts.registry import (
    COMPUTED_WEIGHTS,
    COUNTERPARTS,
    REPLAYED_INPUTS,
    dotted,
)
from taskptq.modules.base import QuantModule

# Methods that a subclass must not replace to be what its base class is.
_RUNNING = ('__call__', 'forward', '_conv_forward')


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class of a module once its weight is a plain parameter."""
    cls = type(module)
    if parametrize.is_parametrized(module):
        # torch puts a class of its own in front of the module's.
        cls = cls.__mro__[1]
    return COMPUTED_WEIGHTS.get(dotted(cls), cls)


def has_forward_of(module: nn.Module, names: Collection[str]) -> bool:
    """Whether a module runs the very forward of a listed class."""
    if 'forward' in vars(module):
        return False
    cls = type(module)
    return any(
        dotted(base) in names and cls.forward is vars(base).get('forward')
        for base in cls.__mro__
    )


def lookup(module: nn.Module) -> type[QuantModule] | None:
    """Return the counterpart of a module's class, None if unmapped.

    That of a base class counts where the class runs the forward of it.

    Raises:
        SettingError: If a counterpart was registered by a dotted name that is
            no subclass of ``QuantModule``.
    """
    target = _target(plain_class(module))
    if not isinstance(target, str):
        return target
    path, _, name = target.rpartition('.')
    found: Any = getattr(importlib.import_module(path), name, None)
    if not (isinstance(found, type) and issubclass(found, QuantModule)):
        raise refuse('counterpart', target, 'name a subclass of QuantModule')
    return found


def _target(cls: type[nn.Module]) -> str | type[QuantModule] | None:
    for base in cls.__mro__:
        target = COUNTERPARTS.get(dotted(base))
        if target is not None:
            same = all(
                getattr(cls, name, None) is getattr(base, name, None)
                for name in _RUNNING
            )
            return target if same else None
    return None


def counterpart_name(module: nn.Module) -> str:
    """Return the name of the counterpart's class, '' if there is none."""
    target = COUNTERPARTS.get(dotted(type(module)), '')
    if isinstance(target, str):
        return target.rpartition('.')[2]
    return target.__name__


def is_attention(module: nn.Module) -> bool:
    """Whether a module attends, by its counterpart or by its name."""
    counterpart = lookup(module)
    if counterpart is not None:
        return _is_attention_name(counterpart.__name__)
    return any(
        _is_attention_name(cls.__name__) for cls in type(module).__mro__
    )


def _is_attention_name(name: str) -> bool:
    return any(word in name for word in ('Attention', 'MSA', 'NonLocal'))


def is_a(module: nn.Module, names: Collection[str]) -> bool:
    """Whether a class of the module's line of descent is listed."""
    return any(dotted(cls) in names for cls in type(module).__mro__)


def replayed_input(module: nn.Module) -> str | None:
    """Return the argument of a module that captures must replay."""
    for cls in type(module).__mro__:
        argument = REPLAYED_INPUTS.get(dotted(cls))
        if argument is not None:
            return argument
    return None


def layer_patterns(
    model: nn.Module, table: Mapping[str, Iterable[str]]
) -> list[tuple[str, str]]:
    """Return what a table of patterns says about a model.

    Args:
        model: The model.
        table: OUTPUT_LAYERS, OUTPUT_SEQUENCES or POSITION_LAYERS.

    Returns:
        (prefix of the names, pattern of what follows the prefix).
    """
    found = [('', pattern) for pattern in table.get('', ())]
    for name, module in model.named_modules():
        prefix = f'{name}.' if name else ''
        for cls in type(module).__mro__:
            found += [(prefix, p) for p in table.get(dotted(cls), ())]
    return found
