"""Distributions of keys: histogram, peaks and spread of channel centers.

To see the effect of a rewrite of keys, run :func:`key_distributions` on the
float model before and after it, and compare. All results are plain types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import Forward, calibration_mode
from taskptq.methods.rewriting.statistics import (
    ChannelStatistics,
    collect_statistics,
)
from taskptq.methods.rewriting.views import select_views

NUM_BINS = 64


def describe_keys(
    keys: Tensor | ChannelStatistics, *, num_bins: int = NUM_BINS
) -> dict[str, Any]:
    """Describe the distribution of one attention's keys.

    Args:
        keys: Keys (..., C), or their statistics.
        num_bins: Bins of the histogram, from the lowest to the highest key.

    Returns:
        ``histogram`` (``edges``, num_bins + 1, and ``density``), ``peaks``
        (see ``DensityPeaks``), ``range`` (lowest, highest), ``center_std``,
        the standard deviation of the channels' midranges, and
        ``mean_width``, the mean over channels of highest minus lowest. A
        per-tensor grid wastes levels if the range is much wider than
        ``mean_width``.
    """
    if isinstance(keys, Tensor):
        keys = ChannelStatistics.of(keys)
    peaks = keys.peaks()
    density, edges = torch.histogram(
        keys.sample.flatten(),
        bins=num_bins,
        range=(peaks.low, peaks.high),
        density=True,
    )
    widths = keys.max_val - keys.min_val
    return {
        'histogram': {'edges': edges.tolist(), 'density': density.tolist()},
        'peaks': peaks.to_dict(),
        'range': [peaks.low, peaks.high],
        'center_std': float(keys.midrange.std(correction=0)),
        'mean_width': float(widths.mean()),
    }


def key_distributions(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    forward: Forward,
    patterns: Iterable[str] | None = None,
    num_bins: int = NUM_BINS,
) -> dict[str, dict[str, Any]]:
    """Describe the keys of every attention of a float model.

    Each on the first batch in which it runs, like bimodal integration.

    Args:
        model: Float model.
        batches: Collated batches.
        forward: Runs the model on one batch.
        patterns: Names of the attentions; None is all.
        num_bins: Bins of each histogram.

    Returns:
        :func:`describe_keys` by qualified name.

    Raises:
        ValueError: If there is no attention, a pattern matches none, or
            there is no batch.
    """
    views, _ = select_views(model, patterns=patterns, argument='patterns')
    found = collect_statistics(
        model, views, batches, forward=forward, parts=['key'], one_batch=True
    )
    return {
        name: describe_keys(parts['key'], num_bins=num_bins)
        for name, parts in found.items()
    }


def compare_distributions(
    before: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Compare results of :func:`key_distributions` before and after.

    Returns:
        By name, ``num_peaks`` and ``range`` as [before, after], and
        ``range_ratio``, the new width relative to the old one.

    Raises:
        ValueError: If the attentions differ.
    """
    if before.keys() != after.keys():
        different = sorted(before.keys() ^ after.keys())
        raise ValueError(
            f'before and after differ in the attentions {different}: '
            'describe the same model twice'
        )
    result = {}
    for name, old in before.items():
        new = after[name]
        widths = [high - low for low, high in (old['range'], new['range'])]
        result[name] = {
            'num_peaks': [
                len(stage['peaks']['positions']) for stage in (old, new)
            ],
            'range': [list(old['range']), list(new['range'])],
            'range_ratio': widths[1] / widths[0] if widths[0] else 1.0,
        }
    return result


def row_sum_errors(
    quant_model: nn.Module, batches: Sequence[Any], *, forward: Forward
) -> dict[str, dict[str, float]]:
    """Measure how far row sums of quantized attentions are from 1.

    Multiplied by the centers of the values, this is the change of the output
    by centering them (``methods.centering.value_centering_residual``).

    Args:
        quant_model: Calibrated or frozen model, quantizers on.
        batches: Collated batches.
        forward: Runs the model on one batch.

    Returns:
        By name of the attention, ``max`` and ``mean`` of |row sum - 1|, and
        the signed mean ``bias``.
    """
    sums: dict[str, list[float]] = {}
    with ExitStack() as stack:
        for name, module in quant_model.named_modules():
            owner, _, point = name.rpartition('.')
            if point == 'softmax_quantizer':
                # max, sum of magnitudes, sum, rows
                sums[owner] = [0.0, 0.0, 0.0, 0.0]
                handle = module.register_forward_hook(_add_to(sums[owner]))
                stack.callback(handle.remove)
        stack.enter_context(calibration_mode(quant_model))
        for batch in batches:
            forward(quant_model, batch)
    return {
        name: {
            'max': largest,
            'mean': magnitude / rows,
            'bias': signed / rows,
        }
        for name, (largest, magnitude, signed, rows) in sums.items()
        if rows
    }


def _add_to(totals: list[float]) -> Callable[..., None]:
    """Make a forward hook that accumulates the rows' errors."""

    def hook(_module: nn.Module, _args: Any, attention: Tensor) -> None:
        error = attention.double().sum(dim=-1) - 1
        if error.numel() == 0:
            return
        totals[0] = max(totals[0], float(error.abs().max()))
        totals[1] += float(error.abs().sum())
        totals[2] += float(error.sum())
        totals[3] += error.numel()

    return hook
