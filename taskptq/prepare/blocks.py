"""Split a model into reconstruction units."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from taskptq.hosts.class_lookup import is_a
from taskptq.hosts.registry import BLOCKS
from taskptq.modules.base import QuantModule
from taskptq.modules.product_mode import owned_methods
from taskptq.modules.products import QuantProducts
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.prepare.structure import find_blocks

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
    callable_names: Collection[str] | Mapping[str, int] | None = None,
    extra: Collection[str] = (),
) -> list[Unit]:
    """Return the units, in definition order.

    A unit is the outermost module of a registered block class (or one that
    ``extra`` names) that holds counterparts; around layers outside of any,
    blocks are found by the model's structure (``find_blocks``). What is left
    becomes units of single layers.

    Args:
        model: Swapped model.
        scope: 'layer', 'block' or 'network'.
        callable_names: Modules that a forward pass was seen to call, with
            the number of calls if it is known. A block that is never called
            as a module is split into its children.
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
    blocks: set[str] = set()
    if scope == 'block':
        blocks = _listed_blocks(model, callable_names, extra)
        calls = _count_calls(callable_names)
        blocks |= find_blocks(model, listed=blocks, calls=calls)
    units: list[Unit] = []
    _collect(model, '', blocks, callable_names, units, set())
    return units


def _listed_blocks(
    model: nn.Module,
    callable_names: Collection[str] | None,
    extra: Collection[str],
) -> set[str]:
    """Names of the blocks of a registered class, and of the user's."""
    return {
        name
        for name, module in model.named_modules()
        if name
        and (callable_names is None or name in callable_names)
        and (
            is_a(module, BLOCKS)
            or any(matches(name, pattern) for pattern in extra)
        )
        and _holds_layers(module)
    }


def _count_calls(
    names: Collection[str] | Mapping[str, int] | None,
) -> Mapping[str, int] | None:
    if names is None or isinstance(names, Mapping):
        return names
    return dict.fromkeys(names, 1)


def _collect(
    module: nn.Module,
    name: str,
    blocks: Collection[str],
    callable_names: Collection[str] | None,
    units: list[Unit],
    seen: set[int],
) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    is_called = callable_names is None or name in callable_names
    if isinstance(module, QuantProducts):
        return  # acts in its owner alone
    # An attention is one layer with its projections: they act together.
    if name in blocks or (is_called and _acts_as_one(module, name, blocks)):
        units.append(Unit(name, module))
        seen.update(id(child) for child in module.modules())
        return
    if isinstance(module, QuantModule):
        return
    for child_name, child in module.named_children():
        path = f'{name}.{child_name}' if name else child_name
        _collect(child, path, blocks, callable_names, units, seen)


def _acts_as_one(
    module: nn.Module, name: str, blocks: Collection[str]
) -> bool:
    """Whether a module outside of blocks is a unit with its children."""
    if isinstance(module, QuantModule):
        return True
    around = any(block.startswith(f'{name}.') for block in blocks)
    return bool(name) and 'forward' in owned_methods(module) and not around


def _holds_layers(module: nn.Module) -> bool:
    return any(isinstance(m, QuantModule) for m in module.modules())
