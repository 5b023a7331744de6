"""Agreement of a quantized model's predictions with the float model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from taskptq.calibration.batches import batch_metas

__all__ = ['agreement_of', 'box_agreement', 'map_agreement']

# Boxes below this score are no predictions that a user would see.
LEAST_SCORE = 0.3
LEAST_IOU = 0.5

# What code of a host may raise where a batch lacks what it decodes with.
UNDECODED = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def agreement_of(
    adapter: Any,
    batches: Sequence[Any],
    *,
    target: Sequence[Mapping[str, Tensor]],
    quant: Sequence[Mapping[str, Tensor]],
) -> dict[str, float]:
    """Decode the outputs of two models and compare the predictions.

    Args:
        adapter: Has ``decode(heads, metas)``.
        batches: Collated batches.
        target: Outputs of the float model for each batch.
        quant: Outputs of the quantized model.

    Returns:
        ``boxes``: share of confident boxes that both models find, F1 at IoU
        0.5; ``pixels``: share of pixels with the same label. Empty for
        models whose predictions are neither, or that cannot be decoded.
    """
    pairs: list[tuple[Any, Any]] = []
    for batch, float_heads, quant_heads in zip(
        batches, target, quant, strict=True
    ):
        metas = batch_metas(batch)
        try:
            pairs += zip(
                adapter.decode(float_heads, metas),
                adapter.decode(quant_heads, metas),
                strict=True,
            )
        except UNDECODED:
            return {}
    if pairs and all(hasattr(one, 'bboxes') for pair in pairs for one in pair):
        return {'boxes': box_agreement(pairs)}
    if pairs and all(_is_map(one) for pair in pairs for one in pair):
        return {'pixels': map_agreement(pairs)}
    return {}


def box_agreement(pairs: Sequence[tuple[Any, Any]]) -> float:
    """Return the F1 of confident boxes; 1 if neither model has any.

    Args:
        pairs: Float and quantized predictions of each image, with
            ``bboxes`` (N, 4) as corners, ``scores`` and ``labels``.
    """
    matched = total = 0
    for target, quant in pairs:
        first, second = _confident(target), _confident(quant)
        total += len(first[0]) + len(second[0])
        matched += 2 * _matches(first, second)
    return matched / total if total else 1.0


def map_agreement(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the share of pixels with the same label."""
    same = sum(int((a == b).sum()) for a, b in pairs)
    return same / max(sum(a.numel() for a, _ in pairs), 1)


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point()


def _confident(found: Any) -> tuple[Tensor, Tensor]:
    """Return boxes and labels by falling score."""
    scores = found.scores
    order = scores.argsort(descending=True)
    order = order[scores[order] >= LEAST_SCORE]
    return found.bboxes[order].float(), found.labels[order]


def _matches(
    first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]
) -> int:
    """Count pairs, each box once, the most confident choosing first."""
    overlaps = _overlaps(first[0], second[0])
    overlaps[first[1][:, None] != second[1][None]] = 0
    count = 0
    for row in range(len(overlaps)):
        if not overlaps.shape[1]:
            break
        best, column = overlaps[row].max(dim=0)
        if best >= LEAST_IOU:
            count += 1
            overlaps[:, column] = 0
    return count


def _overlaps(a: Tensor, b: Tensor) -> Tensor:
    """Return IoUs, (N, M), of boxes given as corners."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=2)
    areas = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(dim=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None] - shared
    return shared / union.clamp(min=1e-9)
