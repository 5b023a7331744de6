"""Write a chosen recipe as a file that a person can read and edit."""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from typing import Any

__all__ = ['recipe_text']

WIDTH = 79


def recipe_text(
    parts: Mapping[str, Any],
    *,
    added: Mapping[str, int],
    notes: Mapping[str, str],
    title: str,
) -> str:
    """Return the text of a recipe file.

    Args:
        parts: Parts of the recipe in plain types; those that are None or
            empty are left out.
        added: How many of the last ``overrides`` and ``keep_float`` were
            chosen.
        notes: Remark on what was chosen, by pattern.
        title: First line of the file's docstring.

    >>> qconfig = dict(keep_float=['conv'])
    >>> print(recipe_text(dict(qconfig=qconfig), added=dict(keep_float=1),
    ...                   notes={'conv': 'costs 3 %'}, title='Chosen.'))
    \"\"\"Chosen.\"\"\"
    <BLANKLINE>
    qconfig = {}
    <BLANKLINE>
    qconfig['keep_float'] = [
        # costs 3 %
        'conv',
    ]
    <BLANKLINE>
    """
    lines = [f'"""{title}"""', '']
    for key, value in parts.items():
        if value is None or value in ([], {}, ()):
            continue
        if key == 'qconfig':
            value = {k: v for k, v in value.items() if k not in added}
        lines += [f'{key} = {_written(value)}', '']
    for key, count in added.items():
        items = list(parts['qconfig'].get(key, ()))
        if not items:
            continue
        lines.append(f"qconfig['{key}'] = [")
        for number, item in enumerate(items):
            pattern = item if isinstance(item, str) else item['pattern']
            if number >= len(items) - count and pattern in notes:
                lines.append(f'    # {notes[pattern]}')
            text = _written(item).replace('\n', '\n    ')
            lines.append(f'    {text},')
        lines += [']', '']
    return '\n'.join(lines)


def _written(value: Any) -> str:
    return pprint.pformat(value, width=WIDTH - 5, sort_dicts=False)
