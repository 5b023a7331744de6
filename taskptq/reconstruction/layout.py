"""Which memory layout of images a unit needs.

The cache hands images out channels last, since convolutions run faster on
that, and what they compute stays the same but for the order of the sums. Some
operators read plain memory only, deformable convolutions for one: they refuse
the other, or misread it without a word. No list can name them all, so each
unit is tried.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from taskptq.reconstruction.capture.nesting import is_float

__all__ = ['are_close', 'needs_plain_memory']

ERRORS = (RuntimeError, ValueError, AssertionError)

logger = logging.getLogger('taskptq')


def needs_plain_memory(
    run: Callable[[bool], list[Tensor]], *, name: str
) -> bool:
    """Whether a unit fails, or computes something else, on channels last.

    Args:
        run: Gives the unit's outputs on images in plain memory (True), or
            channels last (False).
        name: The unit, for the log.
    """
    try:
        expected = run(True)
    except ERRORS:
        # A model that is channels last itself, or an error of the unit: it
        # comes up again when the unit is run.
        return False
    try:
        plain = not are_close(run(False), expected)
    except ERRORS:
        plain = True
    if plain:
        logger.info('%s gets images in plain memory: it needs it', name)
    return plain


def are_close(
    found: list[Tensor], expected: list[Tensor], *, tolerance: float = 1e-3
) -> bool:
    """Whether activations agree but for the order of their sums.

    Args:
        found: Leaves; those that hold no activations are not compared.
        expected: As many.
        tolerance: Largest difference, as a share of the largest expected
            magnitude.
    """
    if len(found) != len(expected):
        return False
    return all(
        _is_close(one, two, tolerance)
        for one, two in zip(found, expected, strict=True)
        if is_float(two)
    )


def _is_close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    if found.shape != expected.shape:
        return False
    finite = expected[expected.isfinite()]
    largest = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(
        found.float(),
        expected.float(),
        rtol=0.0,
        atol=tolerance * largest,
        equal_nan=True,
    )
