"""Compare the error formula of quantized grid logits with measured errors.

A box coordinate T that is the expectation over a grid changes by p_i (y_i - T)
with logit i, so for logits on a step s, to first order,

``rms(T) = s / sqrt(12) sqrt(sum_i p_i^2 (y_i - T)^2)``,

which for two points at distance d is ``s / sqrt(12) sqrt(2) p (1 - p) d``. A
coordinate regressed directly over a range R with b bits has the error
``R / (2^b - 1) / sqrt(12)`` everywhere. The functions here round real logits
and compare the errors with the formula, by which ``grid_choice`` chooses a
grid. They take the grid as an argument (``methods.box_grid.BoxGrid``); results
are plain types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor

from taskptq.core import QuantSpec
from taskptq.core.functional import fake_quantize, range_to_affine

GRANULARITIES = ('tensor', 'coordinate', 'logit')
# Errors below this share of the grid's width come from float32 itself.
SMALLEST = 1e-6
# Share of the errors that is left of a single logit's.
FLOOR = 1e-12


class Grid(Protocol):
    """Interface of a grid: its points, and three functions of logits."""

    points: Tensor

    def expectation(self, logits: Tensor) -> Tensor:
        """Return sum_i p_i y_i, (..., n + 1) -> (...)."""

    def two_hot(self, target: Tensor) -> Tensor:
        """Return the target distribution, (...) -> (..., n + 1)."""

    def expected_rms(self, logits: Tensor, *, step: float | Tensor) -> Tensor:
        """Return the error that the formula predicts, (...)."""


def round_values(
    values: Tensor, *, num_bits: int, ch_axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """Round values to the asymmetric integer grid of their own range.

    Args:
        values: Any shape.
        num_bits: 2 to 8.
        ch_axis: Axis with one range per index; None is one range for all.

    Returns:
        Rounded values, and the step, () or (C,).
    """
    low, high = QuantSpec(num_bits=num_bits).bounds(signed=False)
    values = values.float()
    rows = values.reshape(1, -1)
    if ch_axis is not None:
        rows = values.movedim(ch_axis, 0).flatten(1)
    scale, zero_point = range_to_affine(
        rows.amin(dim=1),
        rows.amax(dim=1),
        symmetric=False,
        quant_min=low,
        quant_max=high,
    )
    rounded = fake_quantize(
        values,
        scale=scale,
        zero_point=zero_point,
        quant_min=low,
        quant_max=high,
        ch_axis=ch_axis,
    )
    return rounded, scale if ch_axis is not None else scale.reshape(())


def round_logits(
    logits: Tensor, *, num_bits: int, granularity: str = 'coordinate'
) -> tuple[Tensor, Tensor]:
    """Quantize the logits of boxes.

    Args:
        logits: (N, 4, n + 1).
        num_bits: 2 to 8.
        granularity: One scale for the 'tensor', each 'coordinate' or each
            'logit'.

    Returns:
        Rounded logits, and their step, which broadcasts to them.

    Raises:
        ValueError: If the granularity is unknown.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(
            f'granularity={granularity!r}: choose one of {GRANULARITIES}'
        )
    if granularity == 'tensor':
        return round_values(logits, num_bits=num_bits)
    if granularity == 'coordinate':
        rounded, step = round_values(logits, num_bits=num_bits, ch_axis=1)
        return rounded, step[:, None]
    flat, step = round_values(logits.flatten(1), num_bits=num_bits, ch_axis=1)
    return flat.view_as(logits), step.view(logits.shape[1:])


def observed_step(logits: Tensor, changed: Tensor) -> Tensor:
    """Return the step whose rounding would cause errors of this size.

    For logits that were not rounded but come from a quantized layer: rms
    error times sqrt(12), for each coordinate.

    Args:
        logits: Float, (N, 4, n + 1).
        changed: Quantized, the same shape.

    Returns:
        (4, 1).
    """
    # A common shift of a coordinate's logits changes no probability.
    error = (changed - logits).float()
    error = error - error.mean(dim=-1, keepdim=True)
    freedom = (logits.shape[-1] - 1) / logits.shape[-1]
    mean = error.square().mean(dim=(0, 2)) / max(freedom, FLOOR)
    return (12 * mean).sqrt()[:, None]


def compare_expectations(
    logits: Tensor,
    changed: Tensor,
    *,
    grid: Grid,
    step: Tensor,
    num_bins: int = 20,
) -> dict[str, Any]:
    """Compare the error of coordinates with the formula's prediction.

    Args:
        logits: Float, (N, 4, n + 1).
        changed: Quantized, the same shape.
        grid: The grid.
        step: Step of the logits, broadcasts to them.
        num_bins: Bins of equally many coordinates, by predicted error.

    Returns:
        See :func:`summarize`; in the unit of the coordinates.
    """
    error = grid.expectation(changed) - grid.expectation(logits)
    predicted = grid.expected_rms(logits, step=step)
    width = float(grid.points[-1] - grid.points[0])
    return summarize(
        predicted, error, num_bins=num_bins, smallest=SMALLEST * width
    )


def compare_boxes(
    logits: Tensor,
    changed: Tensor,
    *,
    grid: Grid,
    step: Tensor,
    decode: Callable[[Tensor], Tensor],
    num_bins: int = 20,
) -> dict[str, Any]:
    """Compare the error of decoded boxes with the formula's, in pixels.

    The predicted errors of the four coordinates are treated as independent
    and propagated by the derivatives of the decoding (central differences).

    Args:
        logits: Float, (N, 4, n + 1).
        changed: Quantized, the same shape.
        grid: The grid.
        step: Step of the logits, broadcasts to them.
        decode: Coordinates (N, 4) -> boxes (N, 4) in pixels.
        num_bins: See :func:`compare_expectations`.
    """
    values = grid.expectation(logits).double()
    sigmas = grid.expected_rms(logits, step=step).double()
    boxes = decode(values)
    error = decode(grid.expectation(changed).double()) - boxes
    variance = torch.zeros_like(boxes)
    small = 1e-4
    for index in range(4):
        shift = torch.zeros_like(values)
        shift[:, index] = small
        slope = (decode(values + shift) - decode(values - shift)) / (2 * small)
        variance += (slope * sigmas[:, index, None]).square()
    return summarize(
        variance.sqrt(), error, num_bins=num_bins, smallest=SMALLEST
    )


def summarize(
    predicted: Tensor,
    error: Tensor,
    *,
    num_bins: int = 20,
    smallest: float = 0.0,
) -> dict[str, Any]:
    """Compare predicted rms errors with measured errors.

    A single error says little about its rms, so values of similar predicted
    error are binned.

    Args:
        predicted: Predicted rms errors, any shape.
        error: Measured errors, the same shape.
        num_bins: Bins of equally many values, by predicted error.
        smallest: Bins with both errors below this are omitted.

    Returns:
        ``predicted`` and ``measured`` (rms over all values), ``ratio`` of
        measured to predicted, ``correlation`` (of the logarithms, over the
        bins; None for fewer than three), ``worst`` (the bins' ratio farthest
        from 1) and ``bins``, each with the first two and ``count``.

    Raises:
        ValueError: If there is no value.
    """
    if error.numel() == 0:
        raise ValueError('0 coordinates: give at least one to compare')
    order = predicted.flatten().argsort()
    sigmas = predicted.flatten()[order].double()
    errors = error.flatten()[order].double()
    bins = [
        {'predicted': rms(sigma), 'measured': rms(part), 'count': part.numel()}
        for sigma, part in zip(
            sigmas.chunk(num_bins), errors.chunk(num_bins), strict=True
        )
    ]
    bins = [b for b in bins if max(b['predicted'], b['measured']) > smallest]
    ratios = [
        b['measured'] / b['predicted'] for b in bins if b['predicted'] > 0
    ]
    total = rms(sigmas)
    return {
        'predicted': total,
        'measured': rms(errors),
        'ratio': rms(errors) / total if total > 0 else None,
        'correlation': _log_correlation(bins),
        'worst': max(ratios, key=_distance_from_one, default=None),
        'bins': bins,
    }


def compare_by_location(
    logits: Tensor,
    changed: Tensor,
    *,
    grid: Grid,
    step: Tensor,
    direct: Tensor,
    edges: Sequence[float],
) -> list[dict[str, Any]]:
    """Compare both kinds of regression by the location of coordinates.

    Args:
        logits: Float, (N, 4, n + 1).
        changed: Quantized, the same shape.
        grid: The grid.
        step: Step of the logits, broadcasts to them.
        direct: Coordinates rounded directly to the same bits, (N, 4).
        edges: Bounds of |T|, ascending, in the unit of the coordinates.

    Returns:
        By interval: ``low``, ``high`` (None if open), ``count``, rms errors
        ``measured`` and ``predicted`` of the grid, and ``direct``.
    """
    value = grid.expectation(logits)
    error = grid.expectation(changed) - value
    predicted = grid.expected_rms(logits, step=step)
    found = []
    for low, high in pairwise(edges):
        inside = (value.abs() >= low) & (value.abs() < high)
        if not bool(inside.any()):
            continue
        found.append(
            {
                'low': float(low),
                'high': float(high) if math.isfinite(high) else None,
                'count': int(inside.sum()),
                'measured': rms(error[inside]),
                'predicted': rms(predicted[inside]),
                'direct': rms((direct - value)[inside]),
            }
        )
    return found


def measure_bits(
    logits: Tensor,
    *,
    grid: Grid,
    bits: Sequence[int] = (8, 6, 4, 3, 2),
    granularity: str = 'coordinate',
    edges: Sequence[float] | None = None,
    num_bins: int = 20,
) -> dict[str, dict[str, Any]]:
    """Round logits and direct coordinates to several bit widths.

    Args:
        logits: Float logits of the foreground, (N, 4, n + 1).
        grid: The grid.
        bits: Bit widths.
        granularity: See :func:`round_logits`.
        edges: See :func:`compare_by_location`; None is the magnitudes of the
            grid's points.
        num_bins: See :func:`compare_expectations`.

    Returns:
        Bit width ('8', ...) -> :func:`compare_expectations`, with ``direct``
        (rms error of rounding T itself, one scale per coordinate) and
        ``by_location``.
    """
    value = grid.expectation(logits)
    if edges is None:
        # Mirrored points differ in their last bits.
        magnitudes = {round(abs(y), 6) for y in grid.points.tolist()}
        edges = [*sorted({0.0, *magnitudes})[:-1], math.inf]
    found = {}
    for num_bits in bits:
        changed, step = round_logits(
            logits, num_bits=num_bits, granularity=granularity
        )
        direct, _ = round_values(value, num_bits=num_bits, ch_axis=1)
        result = compare_expectations(
            logits, changed, grid=grid, step=step, num_bins=num_bins
        )
        result['direct'] = rms(direct - value)
        result['by_location'] = compare_by_location(
            logits, changed, grid=grid, step=step, direct=direct, edges=edges
        )
        found[str(num_bits)] = result
    return found


def rms(values: Tensor) -> float:
    """Return the root of the mean square."""
    return float(values.double().square().mean().sqrt())


def _distance_from_one(ratio: float) -> float:
    return abs(math.log(ratio)) if ratio > 0 else math.inf


def _log_correlation(bins: Sequence[Mapping[str, float]]) -> float | None:
    """Return Pearson's correlation of the logarithms."""
    pairs = [
        (math.log(b['predicted']), math.log(b['measured']))
        for b in bins
        if b['predicted'] > 0 and b['measured'] > 0
    ]
    if len(pairs) < 3:
        return None
    stacked = torch.tensor(pairs, dtype=torch.float64).T
    if bool((stacked.std(dim=1) == 0).any()):
        return None
    return float(torch.corrcoef(stacked)[0, 1])
