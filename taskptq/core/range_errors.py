"""Which of some clipping ranges leaves the least L_p error."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from taskptq.core.functional import range_to_affine
from taskptq.core.spec import QuantSpec

__all__ = ['RangeErrors']

# Elements of one (candidates, channels, samples) working tensor: they stay
# in a core's cache.
CHUNK_ELEMENTS = 1 << 17
# Exponents whose powers torch computes with products alone.
FAST_POWERS = (1.0, 2.0, 3.0)
# Relative error of a sum of exp(p log e) in float32 is below p times this.
ESTIMATE_MARGIN = 1e-4
# Logarithms of zero are slow: estimates take errors as at least this share of
# a row's largest value,
LEAST_ERROR = 1e-12
# and sums below this are compared exactly, since terms may have underflowed.
LEAST_SUM = 1e-30


class RangeErrors:
    """Quantization errors ``sum |x_hat - x|^p`` of fixed rows of values.

    A general power costs more than the rest together, so candidates are
    first estimated with ``exp(p log e)``, and only those that the estimate
    cannot tell apart are computed: the choice is that of the exact errors.

    Args:
        values: (C, N), one row per channel.
        spec: Grid; only bits and symmetry are read.
        signed: Whether the grid is signed.
        weights: (N,) or (C, N) multiplicities; None is 1.
        norm_p: The p of the norm.
        lengths: Values of each row that count, in front; None is all. The
            others need weight 0.
    """

    def __init__(
        self,
        values: Tensor,
        *,
        spec: QuantSpec,
        signed: bool,
        weights: Tensor | None,
        norm_p: float,
        lengths: list[int] | None = None,
    ) -> None:
        self.values = values
        self.symmetric = spec.symmetric
        self.quant_min, self.quant_max = spec.bounds(signed=signed)
        self.weights = None if weights is None else weights.expand_as(values)
        self.norm_p = norm_p
        self.lengths = lengths
        largest = values.abs().amax(dim=1)
        self.floor = (largest * LEAST_ERROR).clamp(min=1e-37)

    def best(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Pick, for each channel, the best of K ranges shaped (K, C)."""
        scale, zero_point = range_to_affine(
            low,
            high,
            symmetric=self.symmetric,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
        )
        zero = zero_point.float()
        if self.norm_p in FAST_POWERS and self.lengths is None:
            index = _last_least(self._errors(scale, zero))
        else:
            index = self._best_index(scale, zero)
        index = index[None]
        return low.gather(0, index)[0], high.gather(0, index)[0]

    def _best_index(self, scale: Tensor, zero: Tensor) -> Tensor:
        estimates = self._errors(scale, zero, exact=False)
        margin = 1 + ESTIMATE_MARGIN * max(1.0, self.norm_p)
        least = estimates.amin(dim=0)
        # Written so that NaN stays a candidate.
        kept = ~(estimates > least * margin + self._unsure())
        # Of equal grids in a row the last wins without a comparison.
        same = (scale[1:] == scale[:-1]) & (zero[1:] == zero[:-1])
        kept[:-1] &= ~(same & kept[1:])
        counts = kept.sum(dim=0)
        index = _last_least(estimates)
        open_channels = (counts > 1).nonzero().flatten()
        for channels, length in self._alike(open_channels):
            size = int(counts[channels].max())
            # Kept candidates come first, in their order; the others that
            # fill up short columns are known to be worse.
            order = (
                kept[:, channels]
                .byte()
                .argsort(dim=0, descending=True, stable=True)[:size]
            )
            errors = self._errors(
                scale[:, channels].gather(0, order),
                zero[:, channels].gather(0, order),
                channels=channels,
                length=length,
            )
            chosen = _last_least(errors)[None]
            index[channels] = order.gather(0, chosen)[0]
        return index

    def _unsure(self) -> Tensor:
        """Return how much the least error adds to each estimate, (C,)."""
        total = (
            self.values.shape[1]
            if self.weights is None
            else self.weights.sum(dim=1)
        )
        return 2 * total * self.floor**self.norm_p + LEAST_SUM

    def _alike(self, channels: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Group channels by the number of their values."""
        if self.lengths is None:
            if channels.numel():
                yield channels, self.values.shape[1]
            return
        for channel in channels:
            yield channel[None], self.lengths[int(channel)]

    def _errors(
        self,
        scale: Tensor,
        zero: Tensor,
        *,
        exact: bool = True,
        channels: Tensor | None = None,
        length: int | None = None,
    ) -> Tensor:
        """Return the errors of K grids shaped (K, C), likewise."""
        values, weights = self.values[:, :length], self.weights
        weights = None if weights is None else weights[:, :length]
        if channels is not None:
            values = values[channels]
            weights = None if weights is None else weights[channels]
        return torch.cat(
            [
                self._block(
                    values[part],
                    None if weights is None else weights[part],
                    scale[:, part, None],
                    zero[:, part, None],
                    floor=None if exact else self.floor[part, None],
                )
                for part in _blocks(*values.shape)
            ],
            dim=1,
        )

    def _block(
        self,
        values: Tensor,
        weights: Tensor | None,
        scale: Tensor,
        zero: Tensor,
        *,
        floor: Tensor | None,
    ) -> Tensor:
        """Return the errors of some channels, (K, C).

        Args:
            values: (C, N).
            weights: Multiplicities of the values, (C, N).
            scale: (K, C, 1).
            zero: Zero points, (K, C, 1).
            floor: Least error of an estimate, (C, 1); None is exact.
        """
        chunk = max(1, CHUNK_ELEMENTS // max(1, values.numel()))
        lowest, highest = self.quant_min - zero, self.quant_max - zero
        parts = []
        for start in range(0, scale.shape[0], chunk):
            part = slice(start, start + chunk)
            # K x C x N, in place: this is the inner loop of calibrations
            error = (values / scale[part]).round_()
            torch.maximum(error, lowest[part], out=error)
            torch.minimum(error, highest[part], out=error)
            error.mul_(scale[part]).sub_(values).abs_()
            if floor is None:
                error.pow_(self.norm_p)
            else:
                torch.maximum(error, floor, out=error)
                error.log_().mul_(self.norm_p).exp_()
            if weights is not None:
                error.mul_(weights)
            parts.append(error.sum(dim=-1))
        return torch.cat(parts)


def _blocks(num_channels: int, length: int) -> Iterator[slice]:
    """Cut channels so that one candidate of a block fits a chunk."""
    size = max(1, CHUNK_ELEMENTS // max(1, length))
    for start in range(0, num_channels, size):
        yield slice(start, start + size)


def _last_least(errors: Tensor) -> Tensor:
    """Return the index of the least error of each column of (K, C).

    Ties go to the last, the wider range: it clips fewer unseen values.
    """
    return errors.shape[0] - 1 - errors.flip(0).argmin(dim=0)
