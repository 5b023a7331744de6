"""Searches for a clipping range under an L_p norm and for bounded scalars."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taskptq.core.functional import range_to_affine
from taskptq.core.spec import QuantSpec

# Elements of one (candidates, channels, samples) working tensor.
CHUNK_ELEMENTS = 1 << 20
# Values per channel that the search samples: enough to rank clipping ranges,
# and it bounds the cost of large weights. The ends are always exact.
MAX_VALUES = 4096
# Share of an interval that a golden-section step keeps.
GOLDEN = 0.5 * (5**0.5 - 1)


def search_range(
    values: Tensor,
    *,
    spec: QuantSpec,
    signed: bool,
    weights: Tensor | None = None,
    norm_p: float = 2.4,
    num_candidates: int = 100,
    refine_rounds: int = 2,
) -> tuple[Tensor, Tensor]:
    """Find the clipping range of least ||x_hat - x||_p^p for each channel.

    Both ends first shrink together over ``num_candidates`` ratios; then each
    end is refined alone, which matters where the two tails differ.

    At 2 bits it pays to clip an outlier:

    >>> values = torch.tensor([[0.0, 1.0, 2.0, 3.0] * 100 + [9.0]])
    >>> low, high = search_range(values, spec=QuantSpec(num_bits=2),
    ...                          signed=False, norm_p=2)
    >>> low.item(), round(high.item(), 1)
    (0.0, 3.0)

    Args:
        values: (C, N), one row per channel.
        spec: Grid; only bits and symmetry are read.
        signed: Whether the grid is signed.
        weights: (N,) multiplicity of each column, for histograms; None is 1.
        norm_p: The p of the norm (2.4 in the published recipes).
        num_candidates: Ratios tried in the first sweep.
        refine_rounds: Rounds of refining each end alone (asymmetric only).

    Returns:
        (min_val, max_val), each (C,).
    """
    values = values.float()
    low = values.amin(dim=1).clamp(max=0.0)
    high = values.amax(dim=1).clamp(min=0.0)
    if weights is None:
        values = values[:, :: -(-values.shape[1] // MAX_VALUES)]
    errors = _Errors(values, spec, signed, weights, norm_p)
    ratios = torch.linspace(
        1.0 / num_candidates, 1.0, num_candidates, device=values.device
    )
    low, high = errors.best(low * ratios[:, None], high * ratios[:, None])
    if spec.symmetric:
        return low, high
    for step in range(refine_rounds):
        spread = torch.linspace(0.7, 1.2, 26, device=values.device)
        spread = 1 + (spread - 1) / 2**step
        fixed = torch.ones_like(spread)
        low, high = errors.best(low * spread[:, None], high * fixed[:, None])
        low, high = errors.best(low * fixed[:, None], high * spread[:, None])
    return low, high


class _Errors:
    """Quantization error of candidate ranges over fixed values."""

    def __init__(
        self,
        values: Tensor,
        spec: QuantSpec,
        signed: bool,
        weights: Tensor | None,
        norm_p: float,
    ) -> None:
        self.values = values
        self.symmetric = spec.symmetric
        self.quant_min, self.quant_max = spec.bounds(signed=signed)
        self.weights = weights
        self.norm_p = norm_p

    def best(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Pick, for each channel, the best of K ranges shaped (K, C)."""
        errors = self._errors(low, high)
        # Ties go to the wider range: it clips fewer unseen values.
        flipped = errors.flip(0).argmin(dim=0)
        index = (errors.shape[0] - 1 - flipped)[None]
        return low.gather(0, index)[0], high.gather(0, index)[0]

    def _errors(self, low: Tensor, high: Tensor) -> Tensor:
        scale, zero_point = range_to_affine(
            low,
            high,
            symmetric=self.symmetric,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
        )
        chunk = max(1, CHUNK_ELEMENTS // max(1, self.values.numel()))
        parts = [
            self._chunk(scale[i : i + chunk], zero_point[i : i + chunk])
            for i in range(0, scale.shape[0], chunk)
        ]
        return torch.cat(parts)

    def _chunk(self, scale: Tensor, zero_point: Tensor) -> Tensor:
        scale, zero = scale[..., None], zero_point[..., None].float()
        # K x C x N, in place: this is the inner loop of every calibration
        error = (self.values[None] / scale).round_()
        error.clamp_(self.quant_min - zero, self.quant_max - zero)
        error.mul_(scale).sub_(self.values).abs_().pow_(self.norm_p)
        if self.weights is not None:
            error.mul_(self.weights)
        return error.sum(dim=-1)


def minimize_bounded(
    error: Callable[[Tensor], Tensor],
    *,
    low: Tensor,
    high: Tensor,
    num_candidates: int = 32,
    num_steps: int = 12,
) -> tuple[Tensor, Tensor]:
    """Minimize C functions of one variable at once, each on [low, high].

    A grid's error as a function of its scale has many local minima, so a
    geometric scan comes first, then a golden-section search around its best
    point (Kiefer, 1953). Returns the best point seen in either.

    >>> target = torch.tensor([2.0, 5.0])
    >>> points, _ = minimize_bounded(lambda x: (x - target) ** 2,
    ...                              low=torch.ones(2),
    ...                              high=torch.full((2,), 9.0))
    >>> points.round(decimals=1)
    tensor([2., 5.])

    Args:
        error: Maps one point of each function, (C,), to its value, (C,).
        low: (C,), positive.
        high: (C,), at least ``low``; both ends are tried.
        num_candidates: Points of the scan, at least 2.
        num_steps: Golden-section steps.

    Returns:
        The points, (C,), and their values, (C,).
    """
    ratios = torch.linspace(0, 1, num_candidates, device=low.device)
    points = low * (high / low) ** ratios[:, None]  # K x C
    points[-1] = high
    values = torch.stack([error(point) for point in points])
    index = values.argmin(dim=0)[None]
    best = _Best(points.gather(0, index)[0], values.gather(0, index)[0])
    a = points.gather(0, (index - 1).clamp(min=0))[0]
    b = points.gather(0, (index + 1).clamp(max=num_candidates - 1))[0]
    c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
    error_c, error_d = best.seen(c, error(c)), best.seen(d, error(d))
    for _ in range(num_steps):
        left = error_c < error_d
        a, b = torch.where(left, a, c), torch.where(left, d, b)
        step = GOLDEN * (b - a)
        new = torch.where(left, b - step, a + step)
        error_new = best.seen(new, error(new))
        c, d = torch.where(left, new, d), torch.where(left, c, new)
        error_c, error_d = (
            torch.where(left, error_new, error_d),
            torch.where(left, error_c, error_new),
        )
    return best.point, best.value


class _Best:
    """The best point seen of each function."""

    def __init__(self, point: Tensor, value: Tensor) -> None:
        self.point = point
        self.value = value

    def seen(self, point: Tensor, value: Tensor) -> Tensor:
        """Keep the point where it is better; return its value."""
        better = value < self.value
        self.point = torch.where(better, point, self.point)
        self.value = torch.where(better, value, self.value)
        return value
