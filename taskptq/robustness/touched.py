"""Replace a function for a while, and count what that changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

__all__ = ['Touched', 'replaced']


@dataclass(kw_only=True)
class Touched:
    """Calls that came out otherwise because of a switch.

    Args:
        none: Why there may be none, one sentence.
        count: Number of calls.
    """

    none: str
    count: int = 0


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give an attribute another value, and restore what was there.

    Args:
        owner: Module or object.
        name: Its attribute.
        value: The value for the time being.
    """
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            # A method of the class shows again.
            delattr(owner, name)
