"""Searches for a clipping range under an L_p norm and for bounded scalars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from taskptq.core.range_errors import RangeErrors
from taskptq.core.spec import QuantSpec

# Values per channel that the search samples: enough to rank clipping ranges,
# and it bounds the cost of large weights. The ends are always exact.
MAX_VALUES = 4096
# Share of an interval that a golden-section step keeps.
GOLDEN = 0.5 * (5**0.5 - 1)


def search_range(
    values: Tensor,
    *,
    spec: QuantSpec,
    signed: bool,
    weights: Tensor | None = None,
    norm_p: float = 2.4,
    num_candidates: int = 100,
    refine_rounds: int = 2,
) -> tuple[Tensor, Tensor]:
    """Find the clipping range of least ||x_hat - x||_p^p for each channel.

    Both ends first shrink together over ``num_candidates`` ratios; then each
    end is refined alone, which matters where the two tails differ.

    At 2 bits it pays to clip an outlier:

    >>> values = torch.tensor([[0.0, 1.0, 2.0, 3.0] * 100 + [9.0]])
    >>> low, high = search_range(values, spec=QuantSpec(num_bits=2),
    ...                          signed=False, norm_p=2)
    >>> low.item(), round(high.item(), 1)
    (0.0, 3.0)

    Args:
        values: (C, N), one row per channel.
        spec: Grid; only bits and symmetry are read.
        signed: Whether the grid is signed.
        weights: (N,) multiplicity of each column, for histograms; None is 1.
        norm_p: The p of the norm (2.4 in the published recipes).
        num_candidates: Ratios tried in the first sweep.
        refine_rounds: Rounds of refining each end alone (asymmetric only).

    Returns:
        (min_val, max_val), each (C,).
    """
    values = values.float()
    low = values.amin(dim=1).clamp(max=0.0)
    high = values.amax(dim=1).clamp(min=0.0)
    if weights is None:
        values = values[:, :: -(-values.shape[1] // MAX_VALUES)]
    errors = RangeErrors(
        values, spec=spec, signed=signed, weights=weights, norm_p=norm_p
    )
    return _search(
        errors,
        low,
        high,
        symmetric=spec.symmetric,
        num_candidates=num_candidates,
        refine_rounds=refine_rounds,
    )


def search_ranges(
    rows: Sequence[tuple[Tensor, Tensor]],
    *,
    spec: QuantSpec,
    signed: bool,
    norm_p: float = 2.4,
    num_candidates: int = 100,
    refine_rounds: int = 2,
) -> tuple[Tensor, Tensor]:
    """Search the ranges of several histograms at once.

    Equals :func:`search_range` of each row, without its cost per call.

    Args:
        rows: Values and their multiplicities, (N,) each, of C channels; N
            may differ.
        spec: See ``search_range``, as for the others.
        signed: Whether the grid is signed.
        norm_p: The p of the norm.
        num_candidates: Ratios tried in the first sweep.
        refine_rounds: Rounds of refining each end alone.

    Returns:
        (min_val, max_val), each (C,).
    """
    lengths = [values.numel() for values, _ in rows]
    first = rows[0][0].float()
    values, weights = first.new_zeros(2, len(rows), max(lengths)).unbind()
    for i, (row, counts) in enumerate(rows):
        values[i, : lengths[i]], weights[i, : lengths[i]] = row, counts
    errors = RangeErrors(
        values,
        spec=spec,
        signed=signed,
        weights=weights,
        norm_p=norm_p,
        lengths=lengths,
    )
    # Zeros that fill up rows are in every range anyway.
    return _search(
        errors,
        values.amin(dim=1).clamp(max=0.0),
        values.amax(dim=1).clamp(min=0.0),
        symmetric=spec.symmetric,
        num_candidates=num_candidates,
        refine_rounds=refine_rounds,
    )


def _search(
    errors: RangeErrors,
    low: Tensor,
    high: Tensor,
    *,
    symmetric: bool,
    num_candidates: int,
    refine_rounds: int,
) -> tuple[Tensor, Tensor]:
    """Shrink both ends together, then refine each alone."""
    device = low.device
    ratios = torch.linspace(
        1.0 / num_candidates, 1.0, num_candidates, device=device
    )
    low, high = errors.best(low * ratios[:, None], high * ratios[:, None])
    if symmetric:
        return low, high
    for step in range(refine_rounds):
        spread = torch.linspace(0.7, 1.2, 26, device=device)
        spread = 1 + (spread - 1) / 2**step
        fixed = torch.ones_like(spread)
        low, high = errors.best(low * spread[:, None], high * fixed[:, None])
        low, high = errors.best(low * fixed[:, None], high * spread[:, None])
    return low, high


def minimize_bounded(
    error: Callable[[Tensor], Tensor],
    *,
    low: Tensor,
    high: Tensor,
    num_candidates: int = 32,
    num_steps: int = 12,
) -> tuple[Tensor, Tensor]:
    """Minimize C functions of one variable at once, each on [low, high].

    A grid's error as a function of its scale has many local minima, so a
    geometric scan comes first, then a golden-section search around its best
    point (Kiefer, 1953). Returns the best point seen in either.

    >>> target = torch.tensor([2.0, 5.0])
    >>> points, _ = minimize_bounded(lambda x: (x - target) ** 2,
    ...                              low=torch.ones(2),
    ...                              high=torch.full((2,), 9.0))
    >>> points.round(decimals=1)
    tensor([2., 5.])

    Args:
        error: Maps one point of each function, (C,), to its value, (C,).
        low: (C,), positive.
        high: (C,), at least ``low``; both ends are tried.
        num_candidates: Points of the scan, at least 2.
        num_steps: Golden-section steps.

    Returns:
        The points, (C,), and their values, (C,).
    """
    ratios = torch.linspace(0, 1, num_candidates, device=low.device)
    points = low * (high / low) ** ratios[:, None]  # K x C
    points[-1] = high
    values = torch.stack([error(point) for point in points])
    index = values.argmin(dim=0)[None]
    best = _Best(points.gather(0, index)[0], values.gather(0, index)[0])
    a = points.gather(0, (index - 1).clamp(min=0))[0]
    b = points.gather(0, (index + 1).clamp(max=num_candidates - 1))[0]
    c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    error_c, error_d = best.seen(c, error(c)), best.seen(d, error(d))
    for _ in range(num_steps):
        left = error_c < error_d
        a, b = torch.where(left, a, c), torch.where(left, d, b)
        step = GOLDEN * (b - a)
        new = torch.where(left, b - step, a + step)
        error_new = best.seen(new, error(new))
        c, d = torch.where(left, new, d), torch.where(left, c, new)
        error_c, error_d = (
            torch.where(left, error_new, error_d),
            torch.where(left, error_c, error_new),
        )
    return best.point, best.value


class _Best:
    """The best point seen of each function."""

    def __init__(self, point: Tensor, value: Tensor) -> None:
        self.point = point
        self.value = value

    def seen(self, point: Tensor, value: Tensor) -> Tensor:
        """Keep the point where it is better; return its value."""
        better = value < self.value
        self.point = torch.where(better, point, self.point)
        self.value = torch.where(better, value, self.value)
        return value
