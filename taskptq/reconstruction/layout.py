"""Find the memory layout that a unit needs for its images.

The cache returns images channels last, on which convolutions run faster;
results differ only by the order of sums. Some operators, such as deformable
convolutions, need plain memory: they reject channels last, or misread it
silently. No list could name them all, so each unit is tried.
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
    """Whether a unit fails or computes something else on channels last.

    Args:
        run: Returns the unit's outputs for images in plain memory (True) or
            channels last (False).
        name: Name of the unit, for the log.
    """
    try:
        expected = run(True)
    except ERRORS:
        # The model itself is channels last, or the unit is broken: then its
        # next run raises the error again.
        return False
    try:
        plain = not are_close(run(False), expected)
    except ERRORS:
        plain = True
    if plain:
        logger.info('%s needs images in plain memory', name)
    return plain


def are_close(
    found: list[Tensor], expected: list[Tensor], *, tolerance: float = 1e-3
) -> bool:
    """Whether activations agree up to the order of their sums.

    Args:
        found: Leaves; only floating-point ones are compared.
        expected: Leaves to compare with.
        tolerance: Largest difference, relative to the largest expected
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
