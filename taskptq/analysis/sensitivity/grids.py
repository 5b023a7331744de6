"""Grids of other bit widths for a tensor, found cheaply from a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from taskptq.analysis.sensitivity.survey import TensorSurvey
from taskptq.core import AffineQuantizer, LSQQuantizer, Quantizer
from taskptq.core.functional import fake_quantize, range_to_affine
from taskptq.core.search import search_range

__all__ = [
    'AffineGrid',
    'Rounder',
    'as_grid',
    'candidate_grids',
    'check_candidates',
]

Rounder = Callable[[Tensor], Tensor]
# Above these bits a search gains nothing: the full range is taken.
SEARCHED_UP_TO = 8
FEWEST_BITS, MOST_BITS = 2, 16
# Coarser than a calibration's search, which has more values as well.
NUM_RATIOS = 40


@dataclass(frozen=True, kw_only=True)
class AffineGrid:
    """A fixed uniform grid.

    Args:
        scale: (C,) or (1,).
        zero_point: Like ``scale``, int32.
        quant_min: Lowest code.
        quant_max: Highest code.
        ch_axis: Channel axis, None for per tensor.
    """

    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    ch_axis: int | None

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid."""
        return fake_quantize(
            x,
            scale=self.scale,
            zero_point=self.zero_point,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            ch_axis=self.ch_axis,
        )


def as_grid(rounded: Rounder) -> AffineGrid | None:
    """Return the fixed uniform grid that a function rounds to, if any."""
    if isinstance(rounded, AffineGrid):
        return rounded
    owner = getattr(rounded, '__self__', None)
    # Subclasses may round otherwise.
    if (
        not isinstance(owner, AffineQuantizer)
        or type(owner) not in (AffineQuantizer, LSQQuantizer)
        or owner.scale.requires_grad
    ):
        return None
    return AffineGrid(**owner.parameters_of_grid())


def check_candidates(candidates: Sequence[int]) -> tuple[int, ...]:
    """Return the candidate bits in ascending order.

    Raises:
        ValueError: If there is none, or one is outside 2 to 16.
    """
    for bits in candidates:
        if not FEWEST_BITS <= bits <= MOST_BITS:
            raise ValueError(
                f'candidates={tuple(candidates)}: bits must be '
                f'{FEWEST_BITS} to {MOST_BITS}'
            )
    if not candidates:
        raise ValueError('candidates is empty: give at least one bit width')
    return tuple(sorted(set(candidates)))


@torch.no_grad()
def candidate_grids(
    quantizer: Quantizer,
    seen: TensorSurvey,
    *,
    candidates: Sequence[int],
) -> dict[int, Rounder]:
    """Return what rounds a tensor at each of some bit widths.

    At its present bits that is the quantizer itself. For other bits it is a
    uniform grid of the same symmetry and granularity, whose range minimizes
    the error of power 2.4 on the sampled values (from 9 bits on: the range
    of the values).

    Args:
        quantizer: Calibrated.
        seen: Survey of its tensor.
        candidates: Bits.
    """
    spec = quantizer.spec
    rows = seen.rows()
    signed = spec.signed
    if signed is None:
        signed = bool((seen.low < 0).any())
    grids: dict[int, Rounder] = {}
    for bits in candidates:
        if bits == spec.num_bits:
            grids[bits] = quantizer.fake_quantize
            continue
        low, high = seen.low, seen.high
        if bits <= SEARCHED_UP_TO:
            low, high = search_range(
                rows,
                spec=replace(spec, num_bits=bits),
                signed=signed,
                num_candidates=NUM_RATIOS,
            )
        quant_min = -(2 ** (bits - 1)) if signed else 0
        quant_max = quant_min + 2**bits - 1
        scale, zero_point = range_to_affine(
            low,
            high,
            symmetric=spec.symmetric,
            quant_min=quant_min,
            quant_max=quant_max,
        )
        grids[bits] = AffineGrid(
            scale=scale,
            zero_point=zero_point,
            quant_min=quant_min,
            quant_max=quant_max,
            ch_axis=spec.ch_axis,
        )
    return grids
