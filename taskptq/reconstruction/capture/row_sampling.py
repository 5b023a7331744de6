"""Group equal calls and sample rows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch

__all__ = [
    'Pick',
    'Rows',
    'add_to_group',
    'draw_group',
    'first_places',
    'is_same',
    'locate_rows',
]

_T = TypeVar('_T')


@dataclass(frozen=True)
class Pick:
    """Rows of one call of a unit in one batch; None is all."""

    batch: int
    call: int
    rows: list[int] | None = None


@dataclass(frozen=True)
class Rows:
    """Number of independent rows of one call of a unit in one batch."""

    batch: int
    call: int
    count: int


def add_to_group(
    member: _T, signature: Any, groups: list[tuple[Any, list[_T]]]
) -> None:
    """Add a member to the group with its signature, or to a new one."""
    for other, members in groups:
        if is_same(other, signature):
            members.append(member)
            return
    groups.append((signature, [member]))


def draw_group(groups: list[_T], weights: list[int]) -> _T:
    """Draw a group by weight; a single one uses no random numbers."""
    if len(groups) == 1:
        return groups[0]
    chances = torch.tensor(weights, dtype=torch.float32)
    return groups[int(torch.multinomial(chances, 1))]


def locate_rows(
    chosen: list[int], counts: list[int]
) -> list[tuple[int, list[int]]]:
    """Turn row numbers over all places into (place, rows within it) pairs.

    >>> locate_rows([0, 3, 4], [2, 3])
    [(0, [0]), (1, [1, 2])]
    """
    places = []
    start = 0
    for place, count in enumerate(counts):
        rows = [row - start for row in chosen if 0 <= row - start < count]
        if rows:
            places.append((place, rows))
        start += count
    return places


def first_places(members: list[Any]) -> list[int]:
    """Return for each member the index of the first equal one.

    >>> first_places(['q', 'k', 'q'])
    [0, 1, 0]
    """
    return [members.index(member) for member in members]


def is_same(one: Any, two: Any) -> bool:
    """Whether two trees are equal; False if they cannot be compared."""
    try:
        return bool(one == two)
    except (ValueError, RuntimeError):  # arrays have no single truth value
        return False
