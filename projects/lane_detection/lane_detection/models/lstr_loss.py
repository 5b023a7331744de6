"""Targets, matching and losses of LSTR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from ..geometry import input_lanes
from .lstr_curves import curve_x

__all__ = ['CurveTargets', 'LSTRLossWeights', 'curve_losses', 'curve_targets']

# Limit of a matched distance, since curves have a pole.
MAX_COST = 1e6


@dataclass(frozen=True, kw_only=True)
class LSTRLossWeights:
    """Settings of an LSTRHead's ``train_cfg``.

    Args:
        classes: Weight of the cross entropy and of its matching cost.
        curve: Weight of the distances in x.
        limits: Weight of lower and upper end.
        no_lane: Class weight of queries without a lane.
        num_rows: Rows of the full height at which curves are compared.
    """

    classes: float = 3.0
    curve: float = 5.0
    limits: float = 2.0
    no_lane: float = 1.0
    num_rows: int = 56


@dataclass(frozen=True, kw_only=True)
class CurveTargets:
    """Lanes of one image, in fractions of the input's width and height.

    Args:
        limits: (L, 2), smallest and largest y inside the image.
        x: (L, P), x at rows from top to bottom; 0 where not valid.
        valid: (L, P), whether the lane has that row.
        weights: (L,), at most 1: ``sqrt(total points / the lane's points)``
            over the largest of these.
    """

    limits: Tensor
    x: Tensor
    valid: Tensor
    weights: Tensor


def rows_of(num_rows: int) -> np.ndarray:
    """Return the compared rows, (P,), as fractions of the height."""
    return (np.arange(num_rows) + 0.5) / num_rows


def curve_targets(
    sample: Any, *, num_rows: int, device: torch.device | str = 'cpu'
) -> CurveTargets:
    """Sample the annotated lanes of an image at fixed rows.

    Args:
        sample: LaneDataSample.
        num_rows: P.
        device: Device of the result.
    """
    height, width = sample.metainfo['img_shape'][:2]
    rows = rows_of(num_rows)
    limits, xs, valid = [], [], []
    for lane in input_lanes(sample):
        points = np.asarray(lane, dtype=np.float64) / (width, height)
        inside = points[((points >= 0) & (points <= 1)).all(axis=1)]
        if len(inside) < 2:
            continue
        # np.interp wants y to increase.
        inside = inside[np.argsort(inside[:, 1], kind='stable')]
        low, high = inside[0, 1], inside[-1, 1]
        hit = (rows >= low) & (rows <= high)
        if not hit.any():
            continue
        limits.append((low, high))
        xs.append(np.interp(rows, inside[:, 1], inside[:, 0]) * hit)
        valid.append(hit)
    mask = np.array(valid, dtype=bool).reshape(-1, num_rows)
    counts = mask.sum(axis=1)
    weights = np.sqrt(counts.sum() / np.maximum(counts, 1))
    weights = weights / weights.max(initial=1e-12)

    def tensor(values: Any, *shape: int) -> Tensor:
        array = np.array(values, dtype=np.float32).reshape(shape)
        return torch.from_numpy(array).to(device)

    return CurveTargets(
        limits=tensor(limits, -1, 2),
        x=tensor(xs, -1, num_rows),
        valid=torch.from_numpy(mask).to(device),
        weights=tensor(weights, -1),
    )


def distances(curves: Tensor, targets: CurveTargets) -> Tensor:
    """Return weighted sums of |dx| over the rows, (Q, L)."""
    rows = rows_of(targets.x.shape[-1]).tolist()
    x = curve_x(curves, curves.new_tensor(rows))  # Q x P
    error = (x[:, None] - targets.x).abs() * targets.valid
    return error.sum(dim=-1) * targets.weights


@torch.no_grad()
def match(
    logits: Tensor,
    curves: Tensor,
    targets: CurveTargets,
    *,
    weights: LSTRLossWeights,
) -> tuple[Tensor, Tensor]:
    """Assign lanes to queries, one to one, at the smallest cost.

    Args:
        logits: (Q, 2).
        curves: (Q, 8).
        targets: Targets of the image.
        weights: Weights of the costs, the same as of the losses.

    Returns:
        Indices of queries and of their lanes.
    """
    limits = (curves[:, None, :2] - targets.limits).abs().sum(dim=-1)
    cost = (
        weights.curve * distances(curves, targets)
        + weights.limits * limits
        - weights.classes * logits.softmax(dim=-1)[:, 1:]
    )
    cost = cost.nan_to_num(MAX_COST).clamp(max=MAX_COST)
    queries, lanes = linear_sum_assignment(cost.cpu().numpy())
    return (
        torch.as_tensor(queries, device=logits.device),
        torch.as_tensor(lanes, device=logits.device),
    )


def curve_losses(
    logits: Tensor,
    curves: Tensor,
    targets: Sequence[CurveTargets],
    *,
    weights: LSTRLossWeights,
) -> dict[str, Tensor]:
    """Return the losses of a batch by name.

    Args:
        logits: (B, Q, 2).
        curves: (B, Q, 8).
        targets: Targets of each image.
        weights: Weights of the losses.
    """
    labels = torch.zeros(
        logits.shape[:2], dtype=torch.long, device=logits.device
    )
    # Zero without lanes, but connected to the graph.
    loss_curve = curves.sum() * 0
    loss_lower, loss_upper = loss_curve, loss_curve
    num_lanes = 0
    for i, target in enumerate(targets):
        queries, lanes = match(logits[i], curves[i], target, weights=weights)
        if not len(lanes):
            continue
        labels[i, queries] = 1
        num_lanes += len(lanes)
        matched = curves[i][queries]
        chosen = CurveTargets(
            limits=target.limits[lanes],
            x=target.x[lanes],
            valid=target.valid[lanes],
            weights=target.weights[lanes],
        )
        loss_curve = loss_curve + distances(matched, chosen).diagonal().sum()
        lower, upper = (matched[:, :2] - chosen.limits).abs().sum(dim=0)
        loss_lower = loss_lower + lower
        loss_upper = loss_upper + upper
    class_weights = logits.new_tensor([weights.no_lane, 1.0])
    loss_cls = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), weight=class_weights
    )
    count = max(num_lanes, 1)
    return {
        'loss_cls': weights.classes * loss_cls,
        'loss_curve': weights.curve * loss_curve / count,
        'loss_lower': weights.limits * loss_lower / count,
        'loss_upper': weights.limits * loss_upper / count,
    }
