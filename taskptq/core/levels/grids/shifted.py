"""One bit around a learned threshold: {c - a, c + a}."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from taskptq.core.levels.levels import LEAST, Levels


class Shifted(Levels):
    """Two levels at any place, for inputs that have no mean of 0.

    Coefficients are half the distance a and the threshold c.
    """

    name = 'shifted'
    basis = ((-1.0, 1.0), (1.0, 1.0))

    def starts(self, rows: Tensor) -> list[Tensor]:
        """Return the mean and the mean distance from it."""
        middle = rows.mean(dim=1, keepdim=True)
        size = (rows - middle).abs().mean(dim=1, keepdim=True)
        return [torch.cat([size, middle], dim=1)]

    def repaired(self, coefficients: Tensor) -> Tensor:
        """Return them with a positive distance."""
        size, middle = coefficients.split(1, dim=-1)
        return torch.cat([size.abs().clamp(min=LEAST), middle], dim=-1)

    def faults(self, coefficients: Tensor) -> Iterator[str]:
        """Yield what is wrong."""
        if not bool((coefficients[:, 0] > 0).all()):
            yield 'shifted levels whose distance is not positive'
