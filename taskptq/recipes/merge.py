"""Settings merged as mm configs merge them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

DELETE = '_delete_'


def merge(
    settings: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return settings with changes merged in; both stay as they are.

    Dicts merge key by key, unless the change holds ``_delete_=True``; every
    other value, lists included, replaces what was there.

    Args:
        settings: What is changed.
        changes: What it is changed to.

    >>> merge({'loss': {'type': 'A', 'tau': 1}}, {'loss': {'tau': 2}})
    {'loss': {'type': 'A', 'tau': 2}}
    >>> merge({'loss': {'type': 'A', 'tau': 1}},
    ...       {'loss': {'_delete_': True, 'type': 'B'}})
    {'loss': {'type': 'B'}}
    """
    merged = {key: copy.deepcopy(value) for key, value in settings.items()}
    for key, value in changes.items():
        if not isinstance(value, Mapping):
            merged[key] = copy.deepcopy(value)
            continue
        below = merged.get(key)
        if value.get(DELETE, False) or not isinstance(below, Mapping):
            below = {}
        merged[key] = merge(
            below, {k: v for k, v in value.items() if k != DELETE}
        )
    return merged
