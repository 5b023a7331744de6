"""One bit without a sign: {0, a}."""

from __future__ import annotations

from torch import Tensor

from taskptq.core.levels.levels import Levels


class Unsigned(Levels):
    """Zero or a size: attention maps, and inputs behind a ReLU."""

    name = 'unsigned'
    basis = ((0.0,), (1.0,))

    def starts(self, rows: Tensor) -> list[Tensor]:
        """Return two sizes: of maps with few and with many large values."""
        top = rows.amax(dim=1, keepdim=True)
        return [top, rows.clamp(min=0).mean(dim=1, keepdim=True) * 2]

    def integers(self) -> tuple[tuple[int, ...], float]:
        """Return 0 and 1."""
        return (0, 1), 1.0
