"""Two bits as two binary planes: {+-s1 +- s2}."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from taskptq.core.levels.levels import LEAST, Levels


class TwoPlane(Levels):
    """Each plane has a sign per weight and a size, s1 >= s2 >= 0.

    BinaryDM, Zheng et al., ICLR 2025; with s2 = 0 it is one bit.
    """

    name = 'two-plane'
    suffix = 'planes'
    basis = ((-1.0, -1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.0))

    def starts(self, rows: Tensor) -> list[Tensor]:
        """Return mean|w|, and the mean size of what this leaves."""
        first = rows.abs().mean(dim=1, keepdim=True)
        rest = (rows.abs() - first).abs().mean(dim=1, keepdim=True)
        return [torch.cat([first, rest], dim=1)]

    def repaired(self, coefficients: Tensor) -> Tensor:
        """Return the same levels with sizes in order."""
        sizes = coefficients.abs().sort(dim=-1, descending=True).values
        first, second = sizes.split(1, dim=-1)
        return torch.cat([first.clamp(min=LEAST), second], dim=-1)

    def faults(self, coefficients: Tensor) -> Iterator[str]:
        """Yield what is wrong."""
        first, second = coefficients.unbind(dim=1)
        if not bool(((first > 0) & (second >= 0) & (first >= second)).all()):
            yield 'two-plane levels without s1 >= s2 >= 0'
