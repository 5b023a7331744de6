"""One bit: {-a, a}."""

from __future__ import annotations

from torch import Tensor

from taskptq.core.levels.levels import Levels


class Binary(Levels):
    """A sign and a size. The best size is mean|w| (XNOR-Net, ECCV 2016)."""

    name = 'binary'
    bits_name = '1'
    basis = ((-1.0,), (1.0,))

    def starts(self, rows: Tensor) -> list[Tensor]:
        """Return mean|w|, which is the best already."""
        return [rows.abs().mean(dim=1, keepdim=True)]

    def integers(self) -> tuple[tuple[int, ...], float]:
        """Return -1 and 1."""
        return (-1, 1), 1.0
