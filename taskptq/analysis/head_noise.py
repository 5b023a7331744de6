"""Sensitivity of predictions to errors of single heads and their regions.

Two questions of Fan et al., 'Selective Focus', AAAI 2024: is the foreground
of a head more sensitive than its background (noise of equal energy on
either), and which head's quantization error hurts most (swap one head, or
leave one out)? All results are plain types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskptq.methods.selective_focus.head_swaps import (
    FORMS,
    Distance,
    HeadBatch,
    HeadSwaps,
    Metas,
)

REGIONS = ('foreground', 'background')


def probe_intra_head(
    heads_float: Sequence[Mapping[str, Tensor]],
    metas: Sequence[Metas],
    *,
    adapter: Any,
    distance: Distance,
    level: float = 0.5,
    threshold: float = 0.3,
    repeats: int = 4,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compare noise on the foreground of a head with noise elsewhere.

    In each image the noise is normal with the same total energy on either
    region: ``level^2`` times the head's variance times the number of
    foreground values. Its standard deviation on the foreground is thus
    ``level`` times the head's.

    Args:
        heads_float: Named outputs of the float model, by batch.
        metas: Metainfo of the images, by batch.
        adapter: Adapter with ``foreground_proxy`` and ``decode``.
        distance: Distance of predictions.
        level: Deviation of the noise on the foreground over the head's.
        threshold: Confidence of a foreground location.
        repeats: Draws of the noise.
        seed: Seed of the noise.

    Returns:
        By head, the mean distance with noise on the ``foreground`` and on
        the ``background``, and ``num_images`` that have both (without any,
        the distances are None).

    Raises:
        ValueError: If ``level`` or ``repeats`` is not positive.
    """
    if level <= 0 or repeats < 1:
        raise ValueError(
            f'level={level}, repeats={repeats}: both must be positive'
        )
    swaps = HeadSwaps(heads_float, metas, adapter=adapter, distance=distance)
    generator = torch.Generator().manual_seed(seed)
    results = {}
    for name in swaps.names:
        found: dict[str, list[float]] = {region: [] for region in REGIONS}
        for batch in swaps.batches:
            proxy = adapter.foreground_proxy(batch.heads).get(name)
            head = batch.heads[name]
            mask = _foreground(head, proxy, threshold=threshold)
            for _ in range(repeats if _has_both(mask).any() else 0):
                noise = torch.randn(head.shape, generator=generator).to(head)
                for region in REGIONS:
                    found[region] += _with_noise(
                        swaps,
                        batch,
                        name,
                        noise=noise,
                        mask=mask,
                        level=level,
                        inside=region == 'foreground',
                    )
        results[name] = _summary(found, repeats=repeats)
    return results


def measure_inter_head(
    heads_float: Sequence[Mapping[str, Tensor]],
    heads_quant: Sequence[Mapping[str, Tensor]],
    metas: Sequence[Metas],
    *,
    adapter: Any,
    distance: Distance,
) -> dict[str, dict[str, float]]:
    """Measure how much each head's quantization error distorts predictions.

    Args:
        heads_float: Named outputs of the float model, by batch.
        heads_quant: Named outputs of the quantized model, by batch.
        metas: Metainfo of the images, by batch.
        adapter: Adapter whose ``decode`` turns heads into predictions.
        distance: Distance of predictions.

    Returns:
        By head, the mean distance ``swap_in`` (only this head is quantized)
        and ``leave_one_out`` (how much it falls if only this head is float).
    """
    results: dict[str, dict[str, float]] = {}
    for form in FORMS:
        swaps = HeadSwaps(
            heads_float, metas, adapter=adapter, distance=distance, form=form
        )
        for name, value in swaps.sensitivities(heads_quant).items():
            results.setdefault(name, {})[form] = value
    return results


def _foreground(
    head: Tensor, proxy: Tensor | None, *, threshold: float
) -> Tensor:
    """Return the mask of the foreground, shaped like the head."""
    if proxy is None:
        return torch.ones_like(head, dtype=torch.bool)
    return (proxy > threshold).expand_as(head)


def _has_both(mask: Tensor) -> Tensor:
    """Return which images have foreground and background, (B,)."""
    flat = mask.flatten(1)
    return flat.any(dim=1) & ~flat.all(dim=1)


def _with_noise(
    swaps: HeadSwaps,
    batch: HeadBatch,
    name: str,
    *,
    noise: Tensor,
    mask: Tensor,
    level: float,
    inside: bool,
) -> list[float]:
    """Return the distances of the images that have both regions."""
    head = batch.heads[name]
    shape = (-1, *[1] * (head.dim() - 1))
    variance = head.float().flatten(1).var(dim=1, correction=0)
    energy = level**2 * variance * mask.flatten(1).sum(dim=1)  # B
    kept = noise * (mask if inside else ~mask)
    present = kept.float().flatten(1).square().sum(dim=1).clamp(min=1e-12)
    scale = (energy / present).sqrt().view(shape).to(head)
    distances = swaps.distances(
        batch, {**batch.heads, name: head + kept * scale}
    )
    usable = _has_both(mask).tolist()
    return [v for v, use in zip(distances, usable, strict=True) if use]


def _summary(
    found: Mapping[str, list[float]], *, repeats: int
) -> dict[str, Any]:
    """Return the means and the number of images."""
    means = {
        region: sum(values) / len(values) if values else None
        for region, values in found.items()
    }
    return {**means, 'num_images': len(found['foreground']) // repeats}
