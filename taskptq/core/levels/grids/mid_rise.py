"""Two bits without zero: {-3, -1, 1, 3} s / 2."""

from __future__ import annotations

from torch import Tensor

from taskptq.core.levels.levels import Levels


class MidRise(Levels):
    """Equal steps around a threshold at 0: odd integers to a runtime."""

    name = 'mid-rise'
    suffix = 'midrise'
    basis = ((-1.5,), (-0.5,), (0.5,), (1.5,))

    def starts(self, rows: Tensor) -> list[Tensor]:
        """Return the step that suits a Gaussian."""
        return [rows.abs().mean(dim=1, keepdim=True) * 1.25]

    def integers(self) -> tuple[tuple[int, ...], float]:
        """Return odd integers in half steps."""
        return (-3, -1, 1, 3), 0.5
