"""Distributions of queries: float, quantized, aligned and quantized.

Q-DETR (Xu et al., CVPR 2023, section 4.1) explains the loss of quantized
DETRs by the information in the decoder's queries, the entropy of their codes.
All results are plain types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import Forward, calibration_mode
from taskptq.core import AffineQuantizer

NUM_BINS = 64


@dataclass(frozen=True, kw_only=True)
class QuerySample:
    """Queries of one attention, as its first matmul reads them.

    Args:
        values: (H, V), all tokens and channels of each head.
        codes: (H, V) integers; None for float queries.
        steps: Distance of neighboring codes, (1,), or (H,) if heads have
            their own grids; None for float queries.
        num_bits: Bits of a code; None for float queries.
    """

    values: Tensor
    codes: Tensor | None = None
    steps: Tensor | None = None
    num_bits: int | None = None


def collect_queries(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Forward,
    points: Mapping[str, str],
) -> dict[str, QuerySample]:
    """Run a model and keep the outputs of the queries' quantizers.

    Args:
        model: Swapped model, quantizers on or off.
        batches: Collated batches.
        forward: Runs the model on one batch.
        points: Title -> qualified name of a quantizer that reads
            (..., H, N, C).

    Returns:
        Samples by title.

    Raises:
        ValueError: If a quantizer was never called.
    """
    seen: dict[str, list[Tensor]] = {title: [] for title in points}
    quantizers = {t: model.get_submodule(name) for t, name in points.items()}
    with ExitStack() as stack:
        for title, quantizer in quantizers.items():
            handle = quantizer.register_forward_hook(_keep(seen[title]))
            stack.callback(handle.remove)
        stack.enter_context(calibration_mode(model))
        for batch in batches:
            forward(model, batch)
    for title, name in points.items():
        if not seen[title]:
            raise ValueError(f'{name} saw no query: give at least one batch')
    return {
        title: _sample(torch.cat(seen[title], dim=1), quantizer)
        for title, quantizer in quantizers.items()
    }


def _keep(found: list[Tensor]) -> Callable[..., None]:
    """Make a hook that keeps outputs as (H, V) on the CPU."""

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        found.append(output.movedim(-3, 0).flatten(1).float().cpu())

    return hook


def _sample(values: Tensor, quantizer: nn.Module) -> QuerySample:
    """Combine values with their codes."""
    if (
        not isinstance(quantizer, AffineQuantizer)
        or not quantizer.calibrated
        or not quantizer.enabled
    ):
        return QuerySample(values=values)
    steps = quantizer.scale.detach().reshape(-1).float().cpu()
    zero_point = quantizer.zero_point.reshape(-1, 1).cpu()
    # The values lie on the grid already, so this is exact.
    codes = (values / steps[:, None]).round().to(torch.int64) + zero_point
    return QuerySample(
        values=values,
        codes=codes,
        steps=steps,
        num_bits=quantizer.spec.num_bits,
    )


def entropy_of(codes: Tensor) -> float:
    """Return the entropy of codes in bits, ``-sum p log2 p``.

    Args:
        codes: Integers, any shape.

    >>> entropy_of(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]))
    2.0
    """
    counts = codes.unique(return_counts=True)[1].double()
    p = counts / counts.sum()
    return float(-(p * p.log2()).sum()) + 0.0


def describe_queries(
    stages: Mapping[str, QuerySample], *, num_bins: int = NUM_BINS
) -> dict[str, Any]:
    """Describe the queries of one attention in several models.

    Args:
        stages: Title of a model -> its queries.
        num_bins: Bins of the histograms.

    Returns:
        ``edges`` (num_bins + 1) of the common bins, and by title under
        ``stages``: ``density``; ``mean`` and ``std`` over everything;
        ``head_means`` and ``head_stds``, the lowest and the highest of the
        heads; for quantized queries also ``num_bits``, ``num_codes`` (codes
        that occur) and ``entropy`` in bits (the mean over heads if they have
        their own grids).

    Raises:
        ValueError: If there is no stage.
    """
    if not stages:
        raise ValueError('0 stages: give at least one')
    low = min(float(one.values.min()) for one in stages.values())
    high = max(float(one.values.max()) for one in stages.values())
    margin = max(1e-6, 0.01 * (high - low))
    edges = torch.linspace(
        low - margin, high + margin, num_bins + 1, dtype=torch.float64
    )
    return {
        'edges': edges.tolist(),
        'stages': {
            title: {'density': _density(one, edges).tolist(), **_facts(one)}
            for title, one in stages.items()
        },
    }


def _facts(sample: QuerySample) -> dict[str, Any]:
    """Return moments and entropy."""
    values = sample.values.double()
    means, stds = values.mean(dim=1), values.std(dim=1, correction=0)
    found: dict[str, Any] = {
        'count': values.numel(),
        'mean': float(values.mean()),
        'std': float(values.std(correction=0)),
        'head_means': [float(means.min()), float(means.max())],
        'head_stds': [float(stds.min()), float(stds.max())],
        'num_bits': sample.num_bits,
        'num_codes': None,
        'entropy': None,
    }
    if sample.codes is not None and sample.steps is not None:
        # Codes of different grids can't be compared.
        grids = [sample.codes] if len(sample.steps) == 1 else sample.codes
        entropies = [entropy_of(codes) for codes in grids]
        found['entropy'] = sum(entropies) / len(entropies)
        found['num_codes'] = max(len(codes.unique()) for codes in grids)
    return found


def _density(sample: QuerySample, edges: Tensor) -> Tensor:
    """Return the density on bins.

    The weight of a code is spread over the step around its value, as counting
    points of a fine grid would cause moire patterns with the bins.
    """
    widths = edges.diff()
    if sample.steps is None:
        counts = torch.histogram(sample.values.double().flatten(), edges)[0]
        return counts / (counts.sum() * widths)
    steps = sample.steps.double().expand(len(sample.values))
    total = torch.zeros_like(widths)
    for values, step in zip(sample.values.double(), steps, strict=True):
        levels, counts = values.unique(return_counts=True)
        share = counts / counts.sum()
        overlap = (
            torch.minimum(edges[1:], levels[:, None] + step / 2)
            - torch.maximum(edges[:-1], levels[:, None] - step / 2)
        ).clamp(min=0)  # levels x bins
        total += (share[:, None] * overlap / step).sum(dim=0)
    return total / (total.sum() * widths)
