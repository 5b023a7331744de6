"""Name patterns of layers: shell style, or regular with the prefix re:."""
from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase


def matches(name: str, pattern: str) -> bool:
    r"""Whether a qualified name matches a pattern, as a whole.

    >>> matches('backbone.layer4.0.conv1', 'backbone.layer4*')
    True
    >>> matches('head.fc', r're:head\.(fc|conv)')
    True
    """
    if pattern.startswith('re:'):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatchcase(name, pattern)


def check_all_used(
    patterns: Iterable[str], names: Iterable[str], *, argument: str
) -> None:
    """Refuse patterns that match nothing: a typo must not pass silently.

    Raises:
        ValueError: Naming the argument, the pattern and some layer names.
    """
    names = list(names)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            some = ', '.join(names[:5])
            raise ValueError(
                f'{argument}: pattern {pattern!r} matches no layer of the '
                f'model (layers are called {some}, ...)'
            )
