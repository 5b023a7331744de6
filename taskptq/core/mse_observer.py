"""The observer whose range leaves the least error."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from taskptq.core.observers import (
    NORM_P,
    NUM_CANDIDATES,
    HistogramObserver,
    Observer,
)
from taskptq.core.search import search_range, search_ranges
from taskptq.core.spec import QuantSpec

__all__ = ['MSEObserver']

# Bins of histograms whose ranges are searched at once.
SEARCHED_TOGETHER = 1 << 20


class MSEObserver(HistogramObserver):
    """Range that minimizes ||x_hat - x||_p.

    Args:
        spec: Grid.
        norm_p: The p of the norm, (0, 16].
        num_candidates: Ranges tried in the first sweep, 1 to 2000.
        num_bins: Most bins kept, 2 to 65536.
    """

    def __init__(
        self,
        spec: QuantSpec,
        *,
        norm_p: float = 2.4,
        num_candidates: int = 100,
        num_bins: int = 4096,
    ) -> None:
        super().__init__(spec, num_bins=num_bins)
        self.norm_p = NORM_P.read(norm_p, name='norm_p')
        self.num_candidates = NUM_CANDIDATES.read(
            num_candidates, name='num_candidates'
        )

    def compute_range(self) -> tuple[Tensor, Tensor]:
        """Search the range on the histogram, or on the rows of a weight."""
        weights = None
        if self._rows is not None:
            values = self._rows
        else:
            centres, weights = self.samples()
            values = centres[None]
        return search_range(
            values,
            spec=self.spec,
            signed=self.signed,
            weights=weights,
            norm_p=self.norm_p,
            num_candidates=self.num_candidates,
        )

    @classmethod
    def compute_ranges(
        cls, observers: Sequence[Observer]
    ) -> list[tuple[Tensor, Tensor]]:
        """Search the ranges of several histograms at once."""
        same = [one for one in observers if isinstance(one, MSEObserver)]
        if len(same) < len(observers) or any(
            one._rows is not None for one in same
        ):
            return super().compute_ranges(observers)
        first = same[0]
        rows = [one.samples() for one in same]
        size = max(1, SEARCHED_TOGETHER // max(len(row[0]) for row in rows))
        found = []
        for start in range(0, len(rows), size):
            low, high = search_ranges(
                rows[start : start + size],
                spec=first.spec,
                signed=first.signed,
                norm_p=first.norm_p,
                num_candidates=first.num_candidates,
            )
            found += list(zip(low.split(1), high.split(1), strict=True))
        return found
