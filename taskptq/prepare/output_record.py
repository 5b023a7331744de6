"""Read what a file records of output grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MAX_NAMES = 10_000
KEYS = ('modules', 'replaced')


def read_output_grids(content: Any) -> tuple[Mapping[str, Any], ...]:
    """Read what a file records, which is not trusted.

    Raises:
        ValueError: If it is not as ``OutputGrid.to_dict`` writes it.
    """
    return tuple(_checked(content))


def _checked(content: Any) -> Iterator[Mapping[str, Any]]:
    for entry in content:
        ok = isinstance(entry, Mapping) and set(entry) == set(KEYS)
        if not ok or not all(
            isinstance(names, list | tuple)
            and all(isinstance(name, str) for name in names)
            and len(names) <= MAX_NAMES
            for names in entry.values()
        ):
            raise ValueError(
                'decisions.outputs holds an entry that is not a dict of '
                'modules and replaced, two lists of names'
            )
        yield {key: list(entry[key]) for key in KEYS}
