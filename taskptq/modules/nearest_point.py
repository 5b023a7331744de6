"""The point of a product that is reached by a way calibration did not take.

A method that multiplies may have several callers, and which of them runs can
depend on the image, on the prompts or on the mode of the model. The product
is the same one: it takes the ranges that it has from another caller.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import takewhile
from typing import Protocol, TypeVar

from taskptq.modules.call_sites import Site

logger = logging.getLogger('taskptq')


class _Placed(Protocol):
    @property
    def place(self) -> str: ...

    @property
    def weight(self) -> str: ...


_P = TypeVar('_P', bound=_Placed)


def nearest_point(points: Iterable[_P], *, place: str) -> _P | None:
    """Return the point that stands for a product at an unknown place.

    The same line of code comes first, by the way that has most of its last
    steps in common, and of equal ones the first; then any product of the
    same weight. Two activations that meet in a line of their own have none.

    >>> from taskptq.modules.products import Point
    >>> one, two = (
    ...     Point('matmul_0', f'forward+{line}.0>inner+2.0 matmul', ())
    ...     for line in (3, 4)
    ... )
    >>> nearest_point([one, two], place='other+1.0>inner+2.0 matmul').name
    'matmul_0'
    >>> nearest_point([one, two], place='forward+3.0>inner+5.0 matmul')

    Args:
        points: Points whose weight, if they have one, is the operand's.
        place: Path of the calls and what is called, as points have it.
    """
    points = list(points)
    best = max(points, key=lambda p: _shared(p.place, place), default=None)
    if best is not None and _shared(best.place, place):
        return best
    return next((point for point in points if point.weight), None)


def _shared(first: str, second: str) -> int:
    """Return how many steps two places have in common, from the last."""
    (one, _, call), (two, _, other) = (
        place.partition(' ') for place in (first, second)
    )
    if call != other:
        return 0
    steps = zip(one.split('>')[::-1], two.split('>')[::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], steps))


def say_borrowed(site: Site, *, place: str, of: str) -> None:
    """Log that a product takes the ranges of another place.

    In training nothing is said: other methods run than in calibration.

    Args:
        site: Who multiplies.
        place: Where.
        of: Place of the point that it takes.
    """
    if site.module.training:
        return
    logger.warning(
        '%s.%s multiplies at %r, which no calibration image reached: it '
        'takes the ranges of %r; more calibration images may give it its own',
        type(site.module).__name__,
        site.method,
        place,
        of,
    )
