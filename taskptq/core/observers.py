"""Observers: statistics of the tensors they see, and the range to quantize.

Each declares in ``reductions`` how its state combines across ranks. Where
that is exact, calibrating on shards equals calibrating on all the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from taskptq.core.settings import Number, Whole
from taskptq.core.spec import QuantSpec

# At least one bin below zero and one above. More than the upper limit makes
# searches take minutes without improving a range.
NUM_BINS = Whole(low=2, high=1 << 16)
NUM_CANDIDATES = Whole(low=1, high=2000)
# Beyond 16 the powers of errors overflow float32.
NORM_P = Number(above=0, high=16)


def channel_rows(x: Tensor, *, ch_axis: int | None) -> Tensor:
    """View a tensor as (C, N): one row per channel, one row if per tensor.

    >>> channel_rows(torch.zeros(2, 8, 5, 5), ch_axis=1).shape
    torch.Size([8, 50])
    >>> channel_rows(torch.zeros(2, 8, 5, 5), ch_axis=None).shape
    torch.Size([1, 400])
    """
    if ch_axis is None:
        return x.reshape(1, -1)
    return x.transpose(0, ch_axis).reshape(x.shape[ch_axis], -1)


class Observer(nn.Module):
    """Base class: accumulate statistics, then compute a range.

    A subclass implements ``update`` and may override ``compute_range``. Its
    buffers named in ``reductions`` are combined across ranks by 'min',
    'max', 'sum', 'mean' (weighted by batches seen) or 'gather' (1-D buffers
    concatenated).

    Args:
        spec: Grid that the range is for.

    Attributes:
        points: Attention operands that it supports; None for all.
        head_quantizer: Name of the quantizer it needs to set one grid per
            head by itself; empty if it cannot.
        wants_value: Whether to call ``expect_value`` before each
            ``observe``.
        one_tensor_per_channel: Whether a spec with ``ch_axis`` keeps only
            the last tensor: enough for weights, not for activations.
    """

    points: ClassVar[tuple[str, ...] | None] = None
    head_quantizer: ClassVar[str] = ''
    wants_value: ClassVar[bool] = False
    one_tensor_per_channel: ClassVar[bool] = False
    reductions: ClassVar[dict[str, str]] = {'min_val': 'min', 'max_val': 'max'}
    min_val: Tensor
    max_val: Tensor

    def __init__(self, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        self.num_batches = 0
        self.register_buffer('min_val', torch.empty(0))
        self.register_buffer('max_val', torch.empty(0))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add one tensor to the statistics.

        Raises:
            ValueError: If it holds NaN or infinity.
        """
        if x.numel() == 0:
            return
        rows = self.rows_of(x.detach()).float()
        low, high = torch.aminmax(rows, dim=1)
        if not (low.isfinite().all() and high.isfinite().all()):
            raise ValueError(
                f'observed tensor of shape {tuple(x.shape)} holds NaN or '
                'infinity'
            )
        self.update(rows, low, high)
        self.num_batches += 1

    def rows_of(self, x: Tensor) -> Tensor:
        """View a tensor as (C, N), one row per range."""
        return channel_rows(x, ch_axis=self.spec.ch_axis)

    def update(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Add (C, N) rows with minima ``low`` and maxima ``high``, (C,)."""
        raise NotImplementedError

    def expect_value(self, value: Tensor) -> None:
        """Receive the value that the next attention weights multiply.

        Args:
            value: Float value, (..., H, M, D).
        """

    def share_budget(self, num_ranks: int) -> None:
        """Trim samples to this rank's share before they are gathered.

        Args:
            num_ranks: Number of ranks whose samples are gathered.
        """

    def parts(self) -> Sequence[Observer]:
        """Return the observers to combine across ranks: itself or parts."""
        return [self]

    @property
    def observed(self) -> bool:
        """Whether it has seen any values."""
        return self.min_val.numel() > 0

    @property
    def signed(self) -> bool:
        """The spec's choice of grid, else signed if any value was negative."""
        if self.spec.signed is not None:
            return self.spec.signed
        return bool((self.min_val < 0).any())

    def compute_range(self) -> tuple[Tensor, Tensor]:
        """Return (min_val, max_val), each (C,), or (1,) per tensor."""
        return self.min_val, self.max_val

    @classmethod
    def compute_ranges(
        cls, observers: Sequence[Observer]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return the ranges of several observers of this class and setting.

        A subclass may compute them at once.
        """
        return [observer.compute_range() for observer in observers]

    def _extend(self, low: Tensor, high: Tensor) -> None:
        if self.observed:
            low = torch.minimum(self.min_val, low)
            high = torch.maximum(self.max_val, high)
        self.min_val, self.max_val = low, high


class MinMaxObserver(Observer):
    """Range from the lowest to the highest value seen.

    >>> observer = MinMaxObserver(QuantSpec())
    >>> observer.observe(torch.tensor([-1.0, 2.0]))
    >>> observer.observe(torch.tensor([0.0, 5.0]))
    >>> observer.compute_range()
    (tensor([-1.]), tensor([5.]))
    """

    def update(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Widen the range."""
        self._extend(low, high)


class MovingAverageMinMaxObserver(Observer):
    """Exponential moving average of each batch's minimum and maximum.

    >>> observer = MovingAverageMinMaxObserver(QuantSpec(), momentum=0.5)
    >>> observer.observe(torch.tensor([-1.0, 2.0]))
    >>> observer.observe(torch.tensor([0.0, 5.0]))
    >>> observer.compute_range()
    (tensor([-0.5000]), tensor([3.5000]))

    Args:
        spec: Grid.
        momentum: Weight of the newest batch, in (0, 1].
    """

    reductions: ClassVar[dict[str, str]] = {
        'min_val': 'mean',
        'max_val': 'mean',
    }

    def __init__(self, spec: QuantSpec, *, momentum: float = 0.1) -> None:
        super().__init__(spec)
        rule = Number(above=0, high=1)
        self.momentum = rule.read(momentum, name='momentum')

    def update(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Move the range towards this batch's."""
        if self.observed:
            low = torch.lerp(self.min_val, low, self.momentum)
            high = torch.lerp(self.max_val, high, self.momentum)
        self.min_val, self.max_val = low, high


class HistogramObserver(Observer):
    """Histogram with bins of width 2^k, bounded in memory.

    Bin edges are multiples of the width, and widening merges neighbours, so
    the counts depend neither on the order of the batches nor on how they are
    split over ranks: the cross-rank sum is exact. Histograms are per tensor;
    with ``ch_axis`` (weights) it keeps the last tensor itself.

    Args:
        spec: Grid.
        num_bins: Most bins kept, 2 to 65536.
    """

    one_tensor_per_channel = True
    reductions: ClassVar[dict[str, str]] = {
        'min_val': 'min',
        'max_val': 'max',
        'counts': 'histogram',
    }
    counts: Tensor

    def __init__(self, spec: QuantSpec, *, num_bins: int = 4096) -> None:
        super().__init__(spec)
        self.num_bins = NUM_BINS.read(num_bins, name='num_bins')
        self.exponent = 0
        self.first_bin = 0
        self.register_buffer(
            'counts', torch.zeros(0, dtype=torch.int64), persistent=False
        )
        self._rows: Tensor | None = None

    def update(self, rows: Tensor, low: Tensor, high: Tensor) -> None:
        """Add the values' counts, widening the bins if they don't fit."""
        self._extend(low, high)
        if self.spec.ch_axis is not None:
            self._rows = rows
            return
        self.rebin(self.needed_exponent())
        bins = (rows[0] * 2.0**-self.exponent).floor_().to(torch.int64)
        counts = torch.bincount(bins - self.first_bin)
        self.counts[: counts.numel()] += counts

    def needed_exponent(self) -> int:
        """Return the smallest k at which the range fits ``num_bins``."""
        low, high = float(self.min_val), float(self.max_val)
        # Never shrinks as the range widens: counts can only be merged.
        span = max(high - low, max(abs(low), abs(high)) * 1e-6, 1e-30)
        exponent = math.frexp(span / self.num_bins)[1] - 1
        while self._bin(high, exponent) - self._bin(low, exponent) >= (
            self.num_bins
        ):
            exponent += 1
        return exponent

    def rebin(self, exponent: int) -> None:
        """Move the counts to width 2^exponent and the observed range."""
        first = self._bin(float(self.min_val), exponent)
        last = self._bin(float(self.max_val), exponent)
        merged = torch.zeros(
            last - first + 1, dtype=torch.int64, device=self.min_val.device
        )
        if self.counts.numel():
            old = torch.arange(self.counts.numel(), device=merged.device)
            old = old + self.first_bin
            # 62 already merges all of int64 into bins -1 and 0.
            shift = min(exponent - self.exponent, 62)
            new = torch.div(old, 2**shift, rounding_mode='floor')
            # Bins without counts may fall outside the observed range.
            filled = self.counts > 0
            merged.index_add_(0, new[filled] - first, self.counts[filled])
        self.counts, self.first_bin = merged, first
        self.exponent = exponent

    def samples(self) -> tuple[Tensor, Tensor]:
        """Return bin centres and counts, both (N,), of the filled bins."""
        filled = self.counts.nonzero().flatten()
        width = 2.0**self.exponent
        centres = (filled + self.first_bin).double().add(0.5).mul(width)
        centres = centres.clamp(float(self.min_val), float(self.max_val))
        # Zero is by far the most common single value after a ReLU.
        zero_bin = filled + self.first_bin == 0
        if float(self.min_val) >= 0:
            centres = centres.masked_fill(zero_bin, 0.0)
        return centres.float(), self.counts[filled].float()

    @staticmethod
    def _bin(value: float, exponent: int) -> int:
        return math.floor(value * 2.0**-exponent)


class PercentileObserver(HistogramObserver):
    """Range that leaves out the same share of values at each end.

    Args:
        spec: Grid.
        percentile: Share of values below the upper end, in percent
            (50, 100].
        num_bins: Most bins kept, 2 to 65536.
    """

    def __init__(
        self,
        spec: QuantSpec,
        *,
        percentile: float = 99.99,
        num_bins: int = 4096,
    ) -> None:
        super().__init__(spec, num_bins=num_bins)
        rule = Number(above=50, high=100)
        self.percentile = rule.read(percentile, name='percentile')

    def compute_range(self) -> tuple[Tensor, Tensor]:
        """Return the two quantiles."""
        share = self.percentile / 100
        if self._rows is not None:
            ends = torch.tensor([1 - share, share], device=self._rows.device)
            low, high = torch.quantile(self._rows, ends, dim=1)
            return low, high
        centres, counts = self.samples()
        cumulated = counts.double().cumsum(0) / counts.double().sum()
        low = centres[(cumulated > 1 - share).nonzero()[0]]
        high = centres[(cumulated >= share).nonzero()[0]]
        return low, high


class KLObserver(HistogramObserver):
    """Range whose quantized histogram has the least KL divergence.

    Migacz, '8-bit inference with TensorRT', GTC 2017, generalised to
    two-sided ranges: both ends shrink by the same ratio. Weights (a spec
    with ``ch_axis``) have too few values per channel for a histogram and
    take their minimum and maximum.

    Args:
        spec: Grid.
        num_candidates: Ratios tried, 1 to 2000.
        num_bins: Most bins kept, 2 to 65536.
    """

    def __init__(
        self,
        spec: QuantSpec,
        *,
        num_candidates: int = 100,
        num_bins: int = 4096,
    ) -> None:
        super().__init__(spec, num_bins=num_bins)
        self.num_candidates = NUM_CANDIDATES.read(
            num_candidates, name='num_candidates'
        )

    def compute_range(self) -> tuple[Tensor, Tensor]:
        """Search the shrinking ratio on the histogram."""
        if self._rows is not None:
            return self.min_val, self.max_val
        centres, counts = self.samples()
        # A grid always contains zero.
        end_low = self.min_val.clamp(max=0.0)
        end_high = self.max_val.clamp(min=0.0)
        if self.spec.symmetric and self.signed:
            end_high = torch.maximum(-end_low, end_high)
            end_low = -end_high
        best = (float('inf'), end_low, end_high)
        if bool(end_low == end_high):
            return end_low, end_high
        for step in range(self.num_candidates, 0, -1):
            ratio = step / self.num_candidates
            low, high = end_low * ratio, end_high * ratio
            divergence = self._divergence(centres, counts, low, high)
            if divergence < best[0]:
                best = (divergence, low, high)
        return best[1], best[2]

    def _divergence(
        self, centres: Tensor, counts: Tensor, low: Tensor, high: Tensor
    ) -> float:
        """KL(P || Q) of the clipped histogram and its quantized form."""
        inside = (centres >= low) & (centres <= high)
        if not inside.any():
            return float('inf')
        reference = counts[inside].double()
        quantized = reference.clone()
        # Only the reference counts clipped mass, in its outermost bins.
        reference[0] += counts[centres < low].sum()
        reference[-1] += counts[centres > high].sum()
        levels = self.spec.num_levels
        step = (high - low).double() / (levels - 1)
        codes = ((centres[inside] - low) / step).round().to(torch.int64)
        mass = torch.zeros(levels, dtype=torch.float64).to(codes.device)
        mass.index_add_(0, codes, quantized)
        bins = torch.zeros_like(mass).index_add_(
            0, codes, torch.ones_like(quantized)
        )
        quantized = (mass / bins.clamp(min=1))[codes]
        p = reference / reference.sum()
        q = quantized / quantized.sum()
        return float((p * (p / q.clamp(min=1e-12)).log()).sum())
