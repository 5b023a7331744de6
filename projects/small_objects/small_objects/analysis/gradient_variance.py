"""Measure the noise of small boxes' localization gradients.

Gradients of heads with different outputs are compared where both have the same
kind of tensor: at the input of the regression layer. Positive position i
contributes ``g_i = W^T d_i``, where d_i is the gradient at its outputs and W
the layer's weight, (outputs, inputs of one position); for a convolution, the
inputs of one position are the patch under its kernel. Only the localization
loss reaches those outputs, whatever else the total loss contains.

UGS (Sun et al., ICCV 2025) compares variances of anchors below 32 px. Since
losses have different scales, the variance is also given relative to the mean
square, ``E|g - E g|^2 / E|g|^2``, and the spread of the norm relative to its
mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Bounds of COCO's size groups, in pixels (roots of areas).
EDGES = (32.0, 96.0)
GROUPS = ('small', 'medium', 'large')


@contextmanager
def watch_outputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect a layer's outputs, one for each call, with their graph.

    Args:
        layer: Layer called once per pyramid level, e.g. for regression.
    """
    found: list[Tensor] = []

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
        found.append(output)

    handle = layer.register_forward_hook(hook)
    try:
        yield found
    finally:
        handle.remove()


def place_gradients(gradient: Tensor, *, num_priors: int = 1) -> Tensor:
    """Sort a gradient by position.

    Args:
        gradient: (R, A * K) of a linear layer, or (N, A * K, H, W) of a
            convolution, whose channels are A priors with K outputs each.
        num_priors: A.

    Returns:
        (M, A, K): M is R, or the positions in the order (N, H, W).
    """
    if gradient.dim() == 4:
        gradient = gradient.permute(0, 2, 3, 1).flatten(0, 2)
    return gradient.unflatten(1, (num_priors, -1))


@dataclass
class _Sums:
    """Running sums of one size group, in double precision."""

    count: int = 0
    squares: float = 0.0
    norms: float = 0.0
    total: Tensor | None = None

    def add(self, vectors: Tensor) -> None:
        """Add gradients, (M, D)."""
        if not len(vectors):
            return
        vectors = vectors.double()
        norms = vectors.norm(dim=1)
        self.count += len(vectors)
        self.norms += float(norms.sum())
        self.squares += float(norms.square().sum())
        added = vectors.sum(dim=0)
        self.total = added if self.total is None else self.total + added

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics; None without gradients."""
        if not self.count or self.total is None:
            return {
                'count': 0,
                'mean_norm': None,
                'variance': None,
                'relative_variance': None,
                'norm_spread': None,
            }
        mean_norm = self.norms / self.count
        power = self.squares / self.count
        center = float((self.total / self.count).square().sum())
        variance = max(0.0, power - center)
        spread = max(0.0, power - mean_norm**2) ** 0.5
        return {
            'count': self.count,
            'mean_norm': mean_norm,
            'variance': variance,
            'relative_variance': variance / power if power else None,
            'norm_spread': spread / mean_norm if mean_norm else None,
        }


@dataclass
class GradientVariance:
    """Statistics of gradients at a regression layer's input, by box size.

    Args:
        edges: Bounds between the groups, in pixels.
        names: Names of the groups, one more than edges.
    """

    edges: Sequence[float] = EDGES
    names: Sequence[str] = GROUPS
    _sums: dict[str, _Sums] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that each group has a name.

        Raises:
            ValueError: If names and edges do not match.
        """
        if len(self.names) != len(self.edges) + 1:
            raise ValueError(
                f'{len(self.names)} names for {len(self.edges)} edges: give '
                'one name more than edges'
            )
        self._sums = {name: _Sums() for name in self.names}

    @torch.no_grad()
    def add(
        self,
        gradient: Tensor,
        *,
        weight: Tensor,
        sizes: Tensor,
        factor: float = 1.0,
    ) -> None:
        """Add the gradient of one call of the layer.

        Args:
            gradient: Gradient at the layer's output, (R, A * K) or
                (N, A * K, H, W).
            weight: The layer's weight, (A * K, C) or (A * K, C, k, k).
            sizes: Roots of the boxes' areas in pixels, (M, A) over positions
                and priors as in :func:`place_gradients`.
            factor: Undoes the averaging of the loss, e.g. the number of
                regions.

        Raises:
            ValueError: If the sizes do not fit the gradient.
        """
        num_priors = sizes.shape[-1]
        places = place_gradients(gradient, num_priors=num_priors)
        if sizes.shape != places.shape[:2]:
            raise ValueError(
                f'sizes {tuple(sizes.shape)} do not fit gradients of '
                f'{tuple(places.shape[:2])} places and priors'
            )
        columns = weight.flatten(1).unflatten(0, (num_priors, -1))
        for prior in range(num_priors):
            own = places[:, prior]
            positive = own.abs().amax(dim=1) > 0
            vectors = factor * own[positive].double() @ columns[prior].double()
            groups = torch.bucketize(
                sizes[:, prior][positive].double(),
                torch.tensor(
                    self.edges, dtype=torch.float64, device=sizes.device
                ),
                right=True,
            )
            for index, name in enumerate(self.names):
                self._sums[name].add(vectors[groups == index])

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the statistics of each group, plain types.

        ``count`` of positive positions; ``mean_norm`` E|g|; ``variance``
        E|g - E g|^2; ``relative_variance``, the variance over E|g|^2;
        ``norm_spread``, the standard deviation of |g| over its mean.
        """
        return {name: sums.to_dict() for name, sums in self._sums.items()}


def compare_variances(
    one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float | None]]:
    """Return how many times noisier the first of two heads is.

    Args:
        one: From :meth:`GradientVariance.to_dict`, e.g. for Smooth-L1.
        other: The same for the other head, e.g. a grid head.

    Returns:
        By group, the ratios of the last three statistics; None without
        gradients.
    """
    keys = ('variance', 'relative_variance', 'norm_spread')
    found: dict[str, dict[str, float | None]] = {}
    for name, stats in one.items():
        found[name] = {
            key: (
                stats[key] / other[name][key]
                if stats[key] is not None and other[name][key]
                else None
            )
            for key in keys
        }
    return found
