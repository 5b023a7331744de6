"""Two bits as two {0, 1} planes: {a2, 0, a1 + a2, a1}."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from taskptq.core.levels.levels import LEAST, Levels


class Dual(Levels):
    """Planes of opposite signs, |a1| > |a2|: DB-LLM, Chen et al., ACL 2024.

    Which sign has the longer side is chosen per channel.
    """

    name = 'dual'
    suffix = 'dual'
    basis = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))

    def starts(self, rows: Tensor) -> list[Tensor]:
        """Return the levels of an asymmetric 2-bit grid, both ways round."""
        step = rows.abs().mean(dim=1, keepdim=True)
        longer = torch.cat([2 * step, -step], dim=1)
        return [longer, -longer]

    def repaired(self, coefficients: Tensor) -> Tensor:
        """Return them with opposite signs, the first one larger."""
        first, second = coefficients.split(1, dim=-1)
        sign = torch.where(first < 0, -1.0, 1.0).to(first)
        size = first.abs().clamp(min=LEAST)
        other = (-sign * second).clamp(min=0).minimum(size)
        return torch.cat([sign * size, -sign * other], dim=-1)

    def faults(self, coefficients: Tensor) -> Iterator[str]:
        """Yield what is wrong."""
        first, second = coefficients.unbind(dim=1)
        valid = (first != 0) & (first.abs() >= second.abs())
        if not bool((valid & (first * second <= 0)).all()):
            yield 'dual levels without |a1| >= |a2| and opposite signs'
