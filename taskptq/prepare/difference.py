"""How far two results of a module lie apart, whatever their nesting."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def difference(found: Any, expected: Any) -> float:
    """Return the largest max |diff| / max |expected| of all tensors.

    Where ``expected`` is NaN nothing is asked of ``found``; infinities must
    be the same. Integers, booleans and plain numbers must be equal.

    Args:
        found: Tensor, or any nesting of lists, tuples, dicts and dataclasses.
        expected: What it is compared with, nested in the same way.

    Returns:
        0 where all agree, inf where shapes, structure or integers differ.
    """
    ours, theirs = list(leaves(found)), list(leaves(expected))
    if len(ours) != len(theirs):
        return math.inf
    gaps = (_gap(a, b) for a, b in zip(ours, theirs, strict=True))
    return max(gaps, default=0.0)


def leaves(value: Any) -> Iterator[Any]:
    """Yield the tensors and plain values of a nesting, in order."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from leaves(getattr(value, field.name))
    else:
        yield value


def share(gap: float) -> str:
    """Return a difference as a text."""
    return f'{gap:.2%}' if math.isfinite(gap) else 'more than all of it'


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nesting."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, Tensor))


def _gap(found: Any, expected: Any) -> float:
    if isinstance(expected, Tensor) != isinstance(found, Tensor):
        return math.inf
    if not isinstance(expected, Tensor):
        plain = (bool, int, float, str, type(None))
        # Objects of other kinds are not compared.
        same = not isinstance(expected, plain) or found == expected
        return 0.0 if same or found is expected else math.inf
    if found.shape != expected.shape:
        return math.inf
    if expected.numel() == 0:
        return 0.0
    if not (expected.is_floating_point() and found.is_floating_point()):
        return 0.0 if torch.equal(found, expected) else math.inf
    return _float_gap(found, expected)


def _float_gap(found: Tensor, expected: Tensor) -> float:
    finite = expected.isfinite()
    if not finite.all():
        infinite = expected.isinf()
        if not torch.equal(found[infinite], expected[infinite]):
            return math.inf
        found, expected = found[finite], expected[finite]
        if expected.numel() == 0:
            return 0.0
    gap = float((found - expected).abs().max())
    if gap == 0:
        return 0.0
    if not math.isfinite(gap):
        return math.inf
    size = float(expected.abs().max())
    return gap / size if size > 0 else math.inf
