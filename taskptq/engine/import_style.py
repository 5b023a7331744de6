"""Write a config in mmengine's import style, with its classes as imports.

``Config.dump`` writes classes and functions as strings, which hosts do not
always look up: ``nms=dict(type=nms)``, for example, is evaluated instead.
"""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from yapf.yapflib.yapf_api import FormatCode

__all__ = ['import_style_text', 'lazy_settings', 'type_name']


def lazy_settings(config: Config) -> dict[str, Any]:
    """Return a config's settings, keeping imported objects.

    Args:
        config: Config of either style.
    """
    return dict(config._to_lazy_dict())


def type_name(kind: Any) -> str:
    """Return the last part of the name behind a ``type``.

    Args:
        kind: Name, dotted path, class, or a class's import-style object.
    """
    if isinstance(kind, type):
        return kind.__name__
    return str(kind).rpartition('.')[2]


def import_style_text(settings: Mapping[str, Any]) -> str:
    """Write settings as Python source that evaluates to them.

    Args:
        settings: Top-level names and values: plain values, classes,
            functions, and their import-style objects.

    Returns:
        Source of a config that needs no other file.

    Raises:
        ValueError: If a value cannot be written as source; names it.
    """
    source = _Source(taken=set(settings))
    lines = [
        f'{name} = {source.text(value, where=name)}'
        for name, value in settings.items()
    ]
    text = '\n'.join([*source.imports.values(), '', *lines, ''])
    return str(FormatCode(text, style_config='pep8')[0])


class _Source:
    """Source of values, with the imports they need.

    Args:
        taken: Names that imports must not use.
    """

    def __init__(self, *, taken: set[str]) -> None:
        self.taken = taken
        self.imports: dict[str, str] = {}
        self.aliases: dict[tuple[str, str | None], str] = {}

    def text(self, value: Any, *, where: str) -> str:
        """Return the source of one value.

        Args:
            value: See :func:`import_style_text`.
            where: Name of the value, for messages.
        """
        if isinstance(value, Mapping):
            items = [
                f'{key!r}: {self.text(item, where=f"{where}.{key}")}'
                for key, item in value.items()
            ]
            return f'{{{", ".join(items)}}}'
        if isinstance(value, (list, tuple)):
            items = [
                self.text(item, where=f'{where}[{i}]')
                for i, item in enumerate(value)
            ]
            if isinstance(value, list):
                return f'[{", ".join(items)}]'
            return f'({", ".join(items)}{"," if len(items) == 1 else ""})'
        if isinstance(value, float) and not math.isfinite(value):
            return f'float({str(value)!r})'
        if value is None or type(value) in (bool, int, float, str, bytes):
            return repr(value)
        return self._imported(value, where=where)

    def _imported(self, value: Any, *, where: str) -> str:
        if isinstance(value, LazyAttr):
            return f'{self._imported(value.source, where=where)}.{value.name}'
        if isinstance(value, LazyObject):
            if isinstance(value._module, str):
                return self._alias(value._module, value._imported)
            for module in value._module:
                self.imports[module] = f'import {module}'
            return str(value.module)
        if isinstance(value, (type, FunctionType)) and '<' not in (
            value.__qualname__
        ):
            outer, _, inner = value.__qualname__.partition('.')
            if value.__module__ == 'builtins':
                return value.__qualname__
            alias = self._alias(value.__module__, outer)
            return f'{alias}.{inner}' if inner else alias
        raise ValueError(
            f'{where} is a {type(value).__name__}, which cannot be written '
            'into a config: give it as plain values, a class or a function'
        )

    def _alias(self, module: str, name: str | None) -> str:
        """Import a name or a module under a free name."""
        found = self.aliases.get((module, name))
        if found is not None:
            return found
        own = name or module.rpartition('.')[2]
        alias, count = own, 1
        while alias in self.taken or keyword.iskeyword(alias):
            count += 1
            alias = f'{own}_{count}'
        self.taken.add(alias)
        self.aliases[module, name] = alias
        if name is None:
            line = f'import {module} as {alias}'
        elif alias == name:
            line = f'from {module} import {name}'
        else:
            line = f'from {module} import {name} as {alias}'
        self.imports[f'{module}:{name}'] = line
        return alias
