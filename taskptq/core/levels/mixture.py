"""Two-component Gaussian mixtures of weights, which pull them to a mean.

POEM, Xu et al., BMVC 2021: weights of one Gaussian change sign at small
disturbances, those of two keep theirs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Least standard deviation, relative to the distance of the means.
LEAST_SPREAD = 1e-3


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Parameters of both components, (2,) each; the lower mean is first.

    Args:
        means: Means.
        spreads: Standard deviations, positive.
        shares: Weights of the components; their sum is 1.
    """

    means: Tensor
    spreads: Tensor
    shares: Tensor


def start_mixture(weight: Tensor) -> Mixture:
    """Return a symmetric mixture with means at +-mean|w|."""
    mean = weight.abs().mean()
    spread = (weight.std(correction=0) / 2).clamp(min=1e-12)
    return Mixture(
        means=torch.stack([-mean, mean]),
        spreads=torch.stack([spread, spread]),
        shares=weight.new_full((2,), 0.5),
    )


def responsibilities(weight: Tensor, mixture: Mixture) -> Tensor:
    """Return the probability that each weight is of each component.

    Args:
        weight: Any shape.
        mixture: The mixture.

    Returns:
        Shape of ``weight`` and a last axis of 2; sums to 1 there.
    """
    steps = (weight[..., None] - mixture.means) / mixture.spreads
    densities = mixture.shares.log() - mixture.spreads.log() - steps**2 / 2
    return densities.softmax(dim=-1)


def update_mixture(
    weight: Tensor, mixture: Mixture, *, symmetric: bool = False
) -> Mixture:
    """Return the mixture after one step of expectation maximization.

    Args:
        weight: Any shape.
        mixture: The mixture before.
        symmetric: Average each component with the mirror image of the other
            one, so that their boundary is 0.
    """
    own = responsibilities(weight, mixture)
    weight = weight[..., None]
    axes = tuple(range(own.dim() - 1))
    total = own.sum(dim=axes).clamp(min=1e-12)
    means = (own * weight).sum(dim=axes) / total
    spreads = ((own * (weight - means).square()).sum(dim=axes) / total).sqrt()
    shares = total / total.sum()
    if symmetric:
        mean = (means[1] - means[0]) / 2
        means = torch.stack([-mean, mean])
        spreads = spreads.mean().expand(2)
        shares = shares.mean().expand(2)
    least = (means[1] - means[0]).abs() * LEAST_SPREAD
    spreads = spreads.clamp(min=1e-12).maximum(least)
    return Mixture(means=means, spreads=spreads, shares=shares)


def mixture_pull(weight: Tensor, mixture: Mixture) -> Tensor:
    """Return ``sum_k xi_k (mu_k - w)`` of weights between the means, else 0.

    POEM, Eq. 6.59 of 'Binary Neural Networks', CRC Press. It points to the
    means, so that a gradient has to have it *subtracted*.

    Args:
        weight: Any shape.
        mixture: The mixture.
    """
    own = responsibilities(weight, mixture)
    pull = (own * (mixture.means - weight[..., None])).sum(dim=-1)
    inside = (weight > mixture.means[0]) & (weight < mixture.means[1])
    return torch.where(inside, pull, torch.zeros_like(pull))
