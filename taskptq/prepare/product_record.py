"""Read what a file records of products that no counterpart owns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from taskptq.modules.products import ROLES

MAX_POINTS = 10_000
MAX_METHODS = 1000
MAX_CHARACTERS = 1000
MAX_AXIS = 16
_NAME = re.compile(r'[a-z0-9_]{1,60}_[0-9]{1,6}', re.ASCII)
_KEYS = {'name', 'place', 'roles', 'axis', 'weight'}


def read_owner(entry: Any) -> dict[str, Any]:
    """Read one module's entry, which may come from a stranger's file.

    Args:
        entry: Dict of ``module``, ``methods`` and ``points``.

    Raises:
        ValueError: If a key, a type or a size is not as
            ``record_owners`` writes it.
    """
    if not isinstance(entry, Mapping) or set(entry) != {
        'module',
        'methods',
        'points',
    }:
        raise _wrong(entry, 'a dict of module, methods and points')
    methods = _items(entry['methods'], MAX_METHODS)
    points = [_read_point(p) for p in _items(entry['points'], MAX_POINTS)]
    if len({point['name'] for point in points}) != len(points):
        raise _wrong(entry['module'], 'an owner whose points differ by name')
    return {
        'module': _text(entry['module']),
        'methods': [_text(method) for method in methods],
        'points': points,
    }


def _read_point(plain: Any) -> dict[str, Any]:
    if not isinstance(plain, Mapping) or set(plain) != _KEYS:
        raise _wrong(plain, f'a dict of {", ".join(sorted(_KEYS))}')
    name = _text(plain['name'])
    if not _NAME.fullmatch(name):
        raise _wrong(name, 'a name such as matmul_0')
    roles = _items(plain['roles'], len(ROLES))
    if not 2 <= len(roles) <= 4 or any(role not in ROLES for role in roles):
        raise _wrong(roles, f'two to four of {", ".join(ROLES)}')
    if roles.count('weight') > 1:
        raise _wrong(roles, 'at most one weight')
    axis = plain['axis']
    if axis is not None and not (type(axis) is int and 0 <= axis < MAX_AXIS):
        raise _wrong(axis, 'an axis')
    return {
        'name': name,
        'place': _text(plain['place']),
        'roles': roles,
        'axis': axis,
        'weight': _text(plain['weight']),
    }


def _items(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list | tuple) or len(value) > most:
        raise _wrong(value, f'a list of at most {most} entries')
    return list(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_CHARACTERS:
        raise _wrong(value, f'a text of at most {MAX_CHARACTERS} characters')
    return value


def _wrong(value: Any, expected: str) -> ValueError:
    return ValueError(
        f'decisions.products: {expected} is needed, got {value!r:.80}'
    )
