"""Quantized files with a valid digest and impossible numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .case import Case, edited, first

__all__ = ['cases']

KIND = 'number'
Payload = dict[str, Any]


def _number(
    ending: str, change: Callable[[Tensor], Any]
) -> Callable[[Payload], None]:
    """Return a change of the first such entry that has a value."""

    def apply(payload: Payload) -> None:
        entries = payload['quantizers']
        name = first(entries, ending=ending)
        entries[name] = change(entries[name])

    return apply


def _of_weight(
    ending: str, change: Callable[[Tensor], Any]
) -> Callable[[Payload], None]:
    return _number(f'weight_quantizer.{ending}', change)


def _of_input(
    ending: str, change: Callable[[Tensor], Any]
) -> Callable[[Payload], None]:
    return _number(f'input_quantizer.{ending}', change)


def _field(field: str, to: Any) -> Callable[[Payload], None]:
    def apply(payload: Payload) -> None:
        entry = payload['weights'][first(payload['weights'])]
        entry[field] = to(entry[field]) if callable(to) else to

    return apply


def _one(tensor: Tensor, value: float) -> Tensor:
    """Return a copy with another last element."""
    # Zero points are stored in as few bytes as they need.
    changed = (
        tensor.clone()
        if tensor.is_floating_point()
        else tensor.to(torch.int32)
    )
    changed.view(-1)[-1] = value
    return changed


SCALES = {
    'nan': math.nan,
    'inf': math.inf,
    'zero': 0.0,
    'negative': -0.1,
    'denormal': 1e-44,
    'huge': 3e38,
}
GRIDS = {
    'reversed': [7, -8],
    'far': [-1000, -985],
    'wide': [-(2**31), 2**31 - 1],
    'one-level': [0, 0],
    'eight-bits': [0, 255],
}


def _scales() -> list[tuple[str, str, Callable[[Payload], None]]]:
    found = [
        (
            f'scale-{n}-{where}',
            f'one scale of {where} is {n}',
            change('scale', lambda t, v=value: _one(t, v)),
        )
        for n, value in SCALES.items()
        for where, change in (('weight', _of_weight), ('input', _of_input))
    ]
    return [
        *found,
        (
            'scale-empty',
            'a scale of no elements',
            _of_weight('scale', lambda t: t[:0]),
        ),
        (
            'scale-longer',
            'more scales than channels',
            _of_weight('scale', lambda t: torch.cat([t, t])),
        ),
        (
            'scale-2d',
            'scales with two axes',
            _of_weight('scale', lambda t: t[None]),
        ),
        (
            'scale-float64',
            'scales of float64',
            _of_weight('scale', lambda t: t.double()),
        ),
        (
            'scale-int',
            'scales of int32',
            _of_weight(
                'scale', lambda t: torch.ones_like(t, dtype=torch.int32)
            ),
        ),
        (
            'scale-bool',
            'scales of bool',
            _of_input('scale', lambda t: torch.ones_like(t, dtype=torch.bool)),
        ),
        (
            'scale-million',
            '10**6 scales for one tensor',
            _of_input('scale', lambda t: torch.ones(10**6)),
        ),
    ]


def _points() -> list[tuple[str, str, Callable[[Payload], None]]]:
    return [
        (
            'zero-point-far',
            'a zero point of 1e9',
            _of_input('zero_point', lambda t: _one(t, 10**9)),
        ),
        (
            'zero-point-below',
            'a zero point below the grid',
            _of_input('zero_point', lambda t: _one(t, -300)),
        ),
        (
            'zero-point-weight',
            'a zero point of 1e9 for a weight',
            _of_weight('zero_point', lambda t: _one(t, 10**9)),
        ),
        (
            'zero-point-nan',
            'a zero point that is NaN',
            _of_input('zero_point', lambda t: torch.full(t.shape, math.nan)),
        ),
        (
            'zero-point-empty',
            'a zero point of no elements',
            _of_input('zero_point', lambda t: t[:0]),
        ),
        (
            'zero-point-int64',
            'a zero point of 2**40',
            _of_input('zero_point', lambda t: torch.full(t.shape, 2**40)),
        ),
        *(
            (
                f'grid-{n}-{where}',
                f'grid {ends} of {where}',
                change(
                    'grid',
                    lambda t, e=ends: torch.tensor(e, dtype=torch.int32),
                ),
            )
            for n, ends in GRIDS.items()
            for where, change in (('weight', _of_weight), ('input', _of_input))
        ),
        (
            'grid-empty',
            'a grid without ends',
            _of_weight('grid', lambda t: t[:0]),
        ),
        (
            'grid-three',
            'a grid with three ends',
            _of_input(
                'grid', lambda t: torch.tensor([0, 1, 2], dtype=torch.int32)
            ),
        ),
        (
            'grid-one',
            'a grid with one end',
            _of_input('grid', lambda t: t[:1]),
        ),
        (
            'grid-float',
            'a grid of floats',
            _of_input('grid', lambda t: torch.tensor([0.5, math.nan])),
        ),
    ]


def _packed() -> list[tuple[str, str, Callable[[Payload], None]]]:
    return [
        (
            'packed-short',
            'a packed weight lacks a byte',
            _field('packed', lambda t: t[:-1].clone()),
        ),
        (
            'packed-long',
            'a packed weight has a byte too many',
            _field('packed', lambda t: torch.cat([t, t[:1]])),
        ),
        (
            'packed-empty',
            'a packed weight is empty',
            _field('packed', lambda t: t[:0].clone()),
        ),
        (
            'shape-negative',
            'a negative length',
            _field('shape', lambda s: [-s[0], -s[1], *s[2:]]),
        ),
        (
            'shape-huge',
            'a length of 2**62',
            _field('shape', lambda s: [2**62, *s[1:]]),
        ),
        (
            'shape-bool',
            'a length of True',
            _field('shape', lambda s: [True, *s[1:]]),
        ),
        (
            'shape-float',
            'a length that is a float',
            _field('shape', lambda s: [float(s[0]), *s[1:]]),
        ),
        ('shape-none', 'no shape', _field('shape', None)),
        ('shape-text', 'a shape that is text', _field('shape', '3333')),
        (
            'shape-many',
            'a shape of 10**5 axes',
            _field('shape', lambda s: [*s, *[1] * 10**5]),
        ),
        (
            'shape-swapped',
            'axes in another order',
            _field('shape', lambda s: [s[1], s[0], *s[2:]]),
        ),
        ('quant-min-far', 'quant_min of -1000', _field('quant_min', -1000)),
        ('quant-min-huge', 'quant_min of 10**30', _field('quant_min', 10**30)),
        ('quant-min-bool', 'quant_min of True', _field('quant_min', True)),
        ('quant-min-float', 'quant_min of NaN', _field('quant_min', math.nan)),
        ('quant-min-none', 'quant_min of None', _field('quant_min', None)),
        ('bits-zero', '0 bits', _field('num_bits', 0)),
        ('bits-negative', '-1 bits', _field('num_bits', -1)),
        ('bits-thirty-two', '32 bits', _field('num_bits', 32)),
        ('bits-huge', '10**9 bits', _field('num_bits', 10**9)),
        ('bits-float', 'bits as a float', _field('num_bits', float)),
        ('bits-text', 'bits as text', _field('num_bits', str)),
        (
            'bits-other',
            'another number of bits than the recipe',
            _field('num_bits', lambda b: b - 1),
        ),
    ]


def cases() -> list[Case]:
    """List them."""
    # A scale of 1e-44 is positive, so it may be accepted or refused.
    lenient = ('denormal', 'scale-huge', 'float64')
    return [
        Case(
            name=f'number-{name}',
            kind=KIND,
            effect=effect,
            write=edited(change),
            expect='either' if any(n in name for n in lenient) else 'refused',
        )
        for name, effect, change in (*_scales(), *_points(), *_packed())
    ]
