"""Split a model into reconstruction units."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from taskptq.hosts.registry import BLOCKS, is_a
from taskptq.modules.base import QuantModule
from taskptq.prepare.patterns import check_all_used, matches

SCOPES = ('layer', 'block', 'network')


@dataclass(frozen=True)
class Unit:
    """One piece that is reconstructed at a time.

    Args:
        name: Qualified name; '' is the whole network.
        module: The piece.
        only: Qualified names of the layers of it that are reconstructed;
            None: all.
    """

    name: str
    module: nn.Module
    only: frozenset[str] | None = None

    def layers(self) -> list[tuple[str, QuantModule]]:
        """Return (qualified name, counterpart) of what it reconstructs."""
        return [
            (self.qualified(name), module)
            for name, module in self.module.named_modules()
            if isinstance(module, QuantModule)
            and self.includes(self.qualified(name))
        ]

    def qualified(self, name: str) -> str:
        """Return the qualified name of a module, from that within."""
        return (
            f'{self.name}.{name}' if name and self.name else (self.name + name)
        )

    def includes(self, layer: str) -> bool:
        """Whether a layer, by its qualified name, is reconstructed."""
        return self.only is None or layer in self.only


def split_blocks(
    model: nn.Module,
    *,
    scope: str = 'block',
    callable_names: Collection[str] | None = None,
    extra: Collection[str] = (),
) -> list[Unit]:
    """Return the units, in definition order.

    A unit is the outermost module of a listed block class (or one that
    ``extra`` names) that holds counterparts; counterparts outside of any
    become units of their own.

    Args:
        model: Swapped model.
        scope: 'layer', 'block' or 'network'.
        callable_names: Modules that a forward pass was seen to call; a block
            that is never called as a module is split into its children.
        extra: Name patterns of further blocks.

    Raises:
        ValueError: If the scope is unknown or a pattern matches nothing.
    """
    if scope not in SCOPES:
        raise ValueError(f'scope={scope!r}: choose one of {", ".join(SCOPES)}')
    if scope == 'network':
        return [Unit('', model)]
    names = [name for name, _ in model.named_modules()]
    check_all_used(extra, names, argument='reconstruction.blocks')
    units: list[Unit] = []
    _collect(model, '', scope, callable_names, extra, units, set())
    return units


def _collect(
    module: nn.Module,
    name: str,
    scope: str,
    callable_names: Collection[str] | None,
    extra: Collection[str],
    units: list[Unit],
    seen: set[int],
) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    is_called = callable_names is None or name in callable_names
    is_block = (
        scope == 'block'
        and name
        and (
            is_a(module, BLOCKS)
            or any(matches(name, pattern) for pattern in extra)
        )
    )
    if is_block and is_called and _holds_layers(module):
        units.append(Unit(name, module))
        seen.update(id(child) for child in module.modules())
        return
    if isinstance(module, QuantModule):
        # An attention is one layer with its projections: they act together.
        if is_called:
            units.append(Unit(name, module))
            seen.update(id(child) for child in module.modules())
        return
    for child_name, child in module.named_children():
        path = f'{name}.{child_name}' if name else child_name
        _collect(child, path, scope, callable_names, extra, units, seen)


def _holds_layers(module: nn.Module) -> bool:
    return any(isinstance(m, QuantModule) for m in module.modules())
