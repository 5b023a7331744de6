"""Levels as rounding with second moments sees them, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from taskptq.core.code_grid import CodeGrid
from taskptq.core.levels.levels import Levels, nearest_level, solve

# Sizes tried, relative to those before.
SIZES = (0.7, 0.8, 0.9, 1.1, 1.2, 1.35)
# Least squares under the second moments, after the sizes.
REFITS = 3


@dataclass(frozen=True, kw_only=True)
class LevelCodes(CodeGrid):
    """Rows of weights on levels.

    Args:
        kind: Kind of grid.
        coefficients: (G, R, P) or (1, 1, P).
    """

    kind: Levels
    coefficients: Tensor

    @property
    def bounds(self) -> tuple[int, int]:  # type: ignore[override]
        """Indices of the lowest and the highest level."""
        return 0, self.kind.num_levels - 1

    @cached_property
    def levels(self) -> Tensor:
        """Levels, (G, R, K), ascending."""
        return self.kind.ordered(self.coefficients)[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows with levels of their own."""
        return self.coefficients.shape[0], self.coefficients.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """That of the coefficients."""
        return self.coefficients.dtype

    @property
    def searches(self) -> int:
        """All sizes together, then refits."""
        return 1 + REFITS

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the indices of the nearest levels, as floats."""
        wide = weight if weight.dim() == 3 else weight[..., None]
        return nearest_level(wide, self.levels).to(weight).view_as(weight)

    def values(self, codes: Tensor) -> Tensor:
        """Return the levels with these indices."""
        wide = codes if codes.dim() == 3 else codes[..., None]
        levels = self.levels.expand(*wide.shape[:2], -1)
        return levels.gather(2, wide.long()).view(codes.shape)

    def zeros(self, codes: Tensor) -> Tensor:
        """Return the index of the level next to 0."""
        return self.nearest(torch.zeros_like(codes))

    def cheaper(
        self, codes: Tensor, weight: Tensor, *, cost: Tensor, prices: Tensor
    ) -> Tensor:
        """Return codes, or their neighbours towards 0 if these cost less."""
        steps = (self.zeros(codes) - codes).sign()
        size = self.levels[..., -1] - self.levels[..., 0]
        unit = size / max(self.bounds[1], 1)
        totals = [
            cost * ((weight - self.values(one)) / unit).square()
            + prices.to(cost)[one.long()]
            for one in (codes, codes + steps)
        ]
        return torch.where(totals[1] < totals[0], codes + steps, codes)

    def moved(
        self, codes: Tensor, gradient: Tensor, curvature: Tensor
    ) -> Tensor:
        """Return the levels next to where the error is least."""
        return self.nearest(self.values(codes) + gradient / curvature)

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return by how much values change with the codes."""
        return self.values(after) - self.values(before)

    def rows(self, place: slice) -> LevelCodes:
        """Return the levels of a range of rows."""
        if self.shape == (1, 1):
            return self
        return self._with(self.coefficients[:, place])

    def put(self, place: slice, grid: Any) -> LevelCodes:
        """Return levels with those of a range of rows replaced."""
        found = self.coefficients.clone()
        own = slice(None) if self.shape == (1, 1) else place
        found[:, own] = grid.coefficients.to(found)
        return self._with(found)

    def expanded(self, shape: tuple[int, int]) -> LevelCodes:
        """Return the same with levels for each row."""
        return self._with(self.coefficients.expand(*shape, -1))

    def double(self) -> LevelCodes:
        """Return the same in float64."""
        levels = LevelCodes(kind=self.kind, coefficients=self.coefficients)
        # Sums of float32 coefficients as a file has them, not of float64.
        levels.__dict__['levels'] = self.levels.double()
        return levels

    def scaled(self, factor: float) -> LevelCodes:
        """Return levels that are all this much larger."""
        return self._with(self.coefficients * factor)

    def candidates(
        self, stage: int, weight: Tensor, hessian: Tensor, codes: Tensor
    ) -> list[LevelCodes]:
        """Try sizes, then what fits the weights with these codes best."""
        if stage == 0:
            return [self.scaled(size) for size in SIZES]
        member = torch.nn.functional.one_hot(
            codes.long(), self.kind.num_levels
        ).to(hessian)
        seen = hessian[:, None] @ member  # G x R x N x K
        normal = member.mT @ seen
        right = (weight.to(hessian)[..., None, :] @ seen)[..., 0, :]
        order = self.kind.ordered(self.coefficients)[1]
        if self.shape == (1, 1):
            normal = normal.sum(dim=(0, 1), keepdim=True)
            right = right.sum(dim=(0, 1), keepdim=True)
        found = solve(
            self.kind, order, normal, right, before=self.coefficients
        )
        return [self._with(found.to(self.coefficients))]

    @classmethod
    def side_by_side(cls, grids: Sequence[Any], *, groups: int) -> LevelCodes:
        """Return levels as those of further rows."""
        del groups
        parts = [one.coefficients for one in grids]
        found: LevelCodes = grids[0]._with(torch.cat(parts, dim=1))
        return found

    @classmethod
    def chosen(cls, grids: Sequence[Any], index: Tensor) -> LevelCodes:
        """Return the levels with this index of each row."""
        parts = torch.stack([one.coefficients for one in grids])
        wide = index[None, ..., None].expand(1, *parts.shape[1:])
        found: LevelCodes = grids[0]._with(parts.gather(0, wide)[0])
        return found

    def _with(self, coefficients: Tensor) -> LevelCodes:
        return LevelCodes(kind=self.kind, coefficients=coefficients)
