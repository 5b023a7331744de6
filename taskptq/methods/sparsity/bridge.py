"""The differentiable bridge from thresholds to rates, and back.

A layer's rate is a step function of its threshold. FCPTS (Gong et al., 'Fast
and controllable post-training sparsity', AAAI 2024) makes it differentiable
by an estimate of the weights' density. Here thresholds are relative: one cut
c for all layers and ``t_l = c tau_l``, with c such that the global rate is
exact at each step. What is left to learn is how the rate is shared out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BINS = 256


@torch.no_grad()
def density(values: Tensor, at: Tensor | float, *, bins: int = BINS) -> Tensor:
    """Estimate the probability density of values by a histogram.

    Args:
        values: Any shape.
        at: Where, one number or a tensor of them.
        bins: Equal bins from the least to the largest value.

    Returns:
        Density, shaped like ``at``; 0 outside of the values.
    """
    flat = values.reshape(-1).double()
    at = torch.as_tensor(at, dtype=torch.float64, device=flat.device)
    low, high = torch.aminmax(flat)
    width = (high - low) / bins
    if not width > 0:
        return torch.zeros_like(at)
    place = ((flat - low) / width).long().clamp(max=bins - 1)
    counts = torch.bincount(place, minlength=bins).double()
    asked = ((at - low) / width).floor().long()
    found = counts[asked.clamp(0, bins - 1)] / (width * flat.numel())
    return torch.where((at < low) | (at > high), 0.0, found)


def rate_slope(
    weight: Tensor, threshold: Tensor | float, *, bins: int = BINS
) -> Tensor:
    """Return d rate / d threshold, ``p(t) + p(-t)`` of the signed weights.

    Args:
        weight: Any shape.
        threshold: Not negative.
        bins: See :func:`density`.
    """
    threshold = torch.as_tensor(threshold, dtype=torch.float64)
    positive = density(weight, threshold, bins=bins)
    return positive + density(weight, -threshold, bins=bins)


def on_budget(gradients: Tensor, weights: Tensor) -> Tensor:
    """Project a gradient by log thresholds onto a constant global rate.

    With ``w_l = n_l r_l'(t_l) t_l``, the weights that a relative step of
    threshold l removes, the cut moves by ``d log c = -sum w_m d log tau_m /
    sum w``. So with ``g_l = dL / d log t_l`` the gradient is ``g_m - w_m sum
    g / sum w``.

    Args:
        gradients: g, (L,).
        weights: w, (L,), not negative.

    Returns:
        dL / d log tau, (L,).
    """
    total = weights.sum()
    if not total > 0:
        return torch.zeros_like(gradients)
    return gradients - weights / total * gradients.sum()


def moved_counts(
    magnitudes: Sequence[Tensor], thresholds: Tensor, *, bins: int = BINS
) -> Tensor:
    """Return ``n_l r_l'(t_l) t_l`` of each layer, (L,).

    Args:
        magnitudes: |W| of each layer.
        thresholds: t, (L,).
        bins: See :func:`density`.
    """
    slopes = [
        m.numel() * density(m, t, bins=bins)
        for m, t in zip(magnitudes, thresholds, strict=True)
    ]
    return torch.stack(slopes).to(thresholds) * thresholds


def rate_at(weight: Tensor, threshold: float) -> float:
    """Return the share of weights below a threshold in magnitude.

    >>> rate_at(torch.tensor([0.9, -0.2, 0.1, 0.3]), 0.25)
    0.5
    """
    return int((weight.abs() < threshold).sum()) / max(weight.numel(), 1)
