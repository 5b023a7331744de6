"""Analytic clipping: the range of least error for an assumed distribution.

Banner, Nahshan, Soudry, 'Post training 4-bit quantization of convolutional
networks for rapid-deployment', NeurIPS 2019 (ACIQ). With M bits over
[-alpha, alpha], rounding costs ``alpha^2 / (3 * 4^M)`` (a uniform error in
bins of width 2 alpha / 2^M) and clipping costs the density's second moment
beyond alpha. The derivative of the sum is zero where

- Laplace of scale b, t = alpha / b:  ``exp(-t) = t / (3 * 4^M)``;
- Gauss of deviation sigma, t = alpha / sigma, density phi, upper tail Q:
  ``phi(t) - t Q(t) = t / (6 * 4^M)``.

A ReLU leaves the upper half of such a density on [0, alpha]: bins are half as
wide, which is the same condition with M + 1 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from taskptq.core.observers import HistogramObserver
from taskptq.core.settings import Choice
from taskptq.core.spec import QuantSpec

DISTRIBUTIONS = ('laplace', 'gauss')
# E|x| over the root of E x^2 (Geary, 1935) is 1 / sqrt(2) for Laplace and
# sqrt(2 / pi) for Gauss; the nearer one decides.
GEARY_MIDPOINT = 0.5 * (math.sqrt(0.5) + math.sqrt(2 / math.pi))


@cache
def clip_factor(num_bits: int, *, distribution: str, half: bool) -> float:
    """Return the best alpha over b (Laplace) or sigma (Gauss).

    >>> round(clip_factor(4, distribution='laplace', half=False), 2)
    5.03
    >>> round(clip_factor(2, distribution='gauss', half=False), 2)
    1.71

    Args:
        num_bits: Bits of the grid.
        distribution: 'laplace' or 'gauss'.
        half: Whether only values of one sign occur.

    Raises:
        ValueError: If the distribution is unknown.
    """
    levels = 4.0 ** (num_bits + half)
    if distribution == 'laplace':
        return _root(lambda t: math.exp(-t) - t / (3 * levels))
    if distribution == 'gauss':
        return _root(lambda t: _gauss_excess(t) - t / (6 * levels))
    raise ValueError(
        f'distribution={distribution!r}: choose one of {DISTRIBUTIONS}'
    )


def _gauss_excess(t: float) -> float:
    """Return phi(t) - t Q(t), the mean of (x - t)+ for a standard x."""
    density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    return density - t * math.erfc(t / math.sqrt(2)) / 2


def _root(falling: Callable[[float], float]) -> float:
    """Return the zero of a falling function on [0, 64], by bisection."""
    low, high = 0.0, 64.0
    for _ in range(80):
        middle = 0.5 * (low + high)
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


class ACIQObserver(HistogramObserver):
    """Analytic clip of Banner et al., within the observed range.

    Signed values are clipped at mean +- alpha (mean 0 on symmetric grids).
    Non-negative values are clipped at alpha, computed from the positive ones
    only, as zeros cost nothing.

    Args:
        spec: Grid.
        distribution: Assumed distribution, 'laplace' or 'gauss'; None picks
            the closer one per channel.
        num_bins: Most bins kept.

    Raises:
        ValueError: If the distribution is unknown.
    """

    def __init__(
        self,
        spec: QuantSpec,
        *,
        distribution: str | None = None,
        num_bins: int = 4096,
    ) -> None:
        super().__init__(spec, num_bins=num_bins)
        rule = Choice(choices=DISTRIBUTIONS, optional=True)
        self.distribution = rule.read(distribution, name='distribution')

    def compute_range(self) -> tuple[Tensor, Tensor]:
        """Return the clip of the assumed distribution."""
        if self._rows is not None:
            values, counts = self._rows, torch.ones_like(self._rows[:1])
        else:
            centres, counts = self.samples()
            values, counts = centres[None], counts[None]
        values, counts = values.double(), counts.double()
        # A symmetric signed grid has bins below zero, used or not.
        two_sided = self.spec.symmetric and self.signed
        half = (self.min_val >= 0) & (not two_sided)  # C
        counts = counts * torch.where(half[:, None], values > 0, True)
        total = counts.sum(dim=1).clamp(min=1e-300)
        mean = (values * counts).sum(dim=1) / total
        centre = mean.masked_fill(half | self.spec.symmetric, 0.0)
        deviation = values - centre[:, None]
        scale = (deviation.abs() * counts).sum(dim=1) / total
        sigma = ((deviation.square() * counts).sum(dim=1) / total).sqrt()
        alpha = self._alpha(scale, sigma, half)
        return self._inside(centre - alpha, centre + alpha, half)

    def _alpha(self, scale: Tensor, sigma: Tensor, half: Tensor) -> Tensor:
        """Return the clip of each channel, (C,), from E|x| and sigma."""
        laplace = scale * self._factors('laplace', half)
        gauss = sigma * self._factors('gauss', half)
        if self.distribution is not None:
            return laplace if self.distribution == 'laplace' else gauss
        geary = scale / sigma.clamp(min=1e-300)
        return torch.where(geary < GEARY_MIDPOINT, laplace, gauss)

    def _factors(self, distribution: str, half: Tensor) -> Tensor:
        whole, halved = (
            clip_factor(
                self.spec.num_bits, distribution=distribution, half=side
            )
            for side in (False, True)
        )
        return torch.where(half, halved, whole).double()

    def _inside(
        self, low: Tensor, high: Tensor, half: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Limit a range to the observed values, (C,) each."""
        low = torch.where(half, self.min_val.double(), low)
        low = torch.maximum(low.to(self.min_val), self.min_val)
        high = torch.minimum(high.to(self.max_val), self.max_val)
        return low, high
