"""1.6 bits: {-a, 0, a}."""

from __future__ import annotations

from torch import Tensor

from taskptq.core.levels.levels import Levels

# Threshold over mean|w| to start from: Ternary Weight Networks, Li et al.,
# arXiv 1605.04711.
SHARE = 0.7


class Ternary(Levels):
    """Two signs and zero."""

    name = 'ternary'
    bits_name = '1.6'
    basis = ((-1.0,), (0.0,), (1.0,))

    def starts(self, rows: Tensor) -> list[Tensor]:
        """Return the mean of what lies beyond 0.7 mean|w|."""
        sizes = rows.abs()
        beyond = sizes > SHARE * sizes.mean(dim=1, keepdim=True)
        count = beyond.sum(dim=1, keepdim=True).clamp(min=1)
        return [(sizes * beyond).sum(dim=1, keepdim=True) / count]

    def integers(self) -> tuple[tuple[int, ...], float]:
        """Return -1, 0 and 1."""
        return (-1, 0, 1), 1.0
