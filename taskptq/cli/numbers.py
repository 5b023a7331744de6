"""Types of numeric options: what cannot be is refused in one sentence.

Nothing here imports torch, so that a tool may read its options first.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

# As taskptq.core.settings.MAX_SEED.
MAX_SEED = (1 << 32) - 1


def whole(*, low: int, high: int | None = None) -> Callable[[str], int]:
    """Return the type of an option that is a whole number.

    Args:
        low: Least value.
        high: Greatest value; None sets no limit.
    """
    most = '' if high is None else f' and at most {high}'

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if number < low or (high is not None and number > high):
            raise argparse.ArgumentTypeError(
                f'{text[:40]!r}: give a whole number of at least {low}{most}'
            )
        return number

    return read


def number(*, low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return the type of an option that is a finite number.

    Args:
        low: Least value.
        high: Greatest value.
    """
    most = '' if math.isinf(high) else f' and at most {high:g}'

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and low <= value <= high):
            raise argparse.ArgumentTypeError(
                f'{text[:40]!r}: give a number of at least {low:g}{most}'
            )
        return value

    return read


count = whole(low=1)
seed = whole(low=0, high=MAX_SEED)
bits = whole(low=2, high=8)
share = number(low=0, high=1)
minutes = number(low=0)


def budget(text: str) -> tuple[str, float]:
    """Read a budget, e.g. ``bops=0.5``; the recipe checks its name.

    >>> budget('macs_above=0.03')
    ('macs_above', 0.03)
    """
    name, equals, value = text.partition('=')
    if not (name and equals):
        raise argparse.ArgumentTypeError(
            f'{text[:40]!r}: give a cost and its limit, such as bops=0.5'
        )
    return name, number(low=0)(value)
