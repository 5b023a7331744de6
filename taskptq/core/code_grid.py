"""What the codes of some rows of weights stand for, to whoever picks codes.

Rounding with second moments compares codes by the values they stand for. A
grid tells it what these are, row by row; weights come as (G, R, N), with G
groups of R output channels each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from taskptq.core.functional import range_to_affine

# Ranges tried, relative to that of the weights, and ends relative to the best.
RATIOS = tuple(0.4 + 0.05 * i for i in range(13))
SPREAD = (0.7, 0.8, 0.9, 1.1, 1.2)


class CodeGrid:
    """Base class; one grid per row, or one of all rows.

    Attributes:
        bounds: Lowest and highest code.
        searches: Stages of a search for a better grid.
    """

    bounds: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows with a grid of their own, (G, R); (1, 1) for one of all."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Type in which values are compared."""
        raise NotImplementedError

    @property
    def searches(self) -> int:
        """Number of stages of a search."""
        raise NotImplementedError

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the codes next to weights, (G, R) or (G, R, N); floats."""
        raise NotImplementedError

    def values(self, codes: Tensor) -> Tensor:
        """Return the values of codes, (G, R) or (G, R, N)."""
        raise NotImplementedError

    def zeros(self, codes: Tensor) -> Tensor:
        """Return the code of 0, shaped and typed like ``codes``, (G, R)."""
        raise NotImplementedError

    def cheaper(
        self, codes: Tensor, weight: Tensor, *, cost: Tensor, prices: Tensor
    ) -> Tensor:
        """Return codes, or their neighbours towards 0 where these cost less.

        Args:
            codes: (G, R).
            weight: What they stand for, (G, R).
            cost: Of a squared step, broadcasts to (G, R).
            prices: Of each code, see :class:`~taskptq.core.Quantizer`.
        """
        raise NotImplementedError

    def moved(
        self, codes: Tensor, gradient: Tensor, curvature: Tensor
    ) -> Tensor:
        """Return the best codes of a quadratic error, (G, R).

        Args:
            codes: Codes now.
            gradient: Half its descent by the value, negative gradient.
            curvature: Half its second derivative, broadcasts to (G, R).
        """
        raise NotImplementedError

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return by how much values change with the codes, (G, R)."""
        raise NotImplementedError

    def rows(self, place: slice) -> CodeGrid:
        """Return the grid of a range of rows."""
        raise NotImplementedError

    def put(self, place: slice, grid: Any) -> CodeGrid:
        """Return a grid with that of a range of rows replaced."""
        raise NotImplementedError

    def expanded(self, shape: tuple[int, int]) -> CodeGrid:
        """Return the same with a grid for each row."""
        raise NotImplementedError

    def double(self) -> CodeGrid:
        """Return the same in float64."""
        raise NotImplementedError

    def scaled(self, factor: float) -> CodeGrid:
        """Return a grid whose values are all this much larger."""
        raise NotImplementedError

    def candidates(
        self, stage: int, weight: Tensor, hessian: Tensor, codes: Tensor
    ) -> Sequence[CodeGrid]:
        """Return grids to try in a stage, shaped like this one, the best yet.

        Args:
            stage: From 0 to ``searches - 1``.
            weight: (G, R, N).
            hessian: Second moments of their inputs, (G, N, N).
            codes: Codes with this grid, (G, R, N).
        """
        raise NotImplementedError

    @classmethod
    def side_by_side(cls, grids: Sequence[Any], *, groups: int) -> CodeGrid:
        """Return grids of (G, R) as one of further rows, (G, n R)."""
        raise NotImplementedError

    @classmethod
    def chosen(cls, grids: Sequence[Any], index: Tensor) -> CodeGrid:
        """Return the grid with this index of each row, (G, R) int64."""
        raise NotImplementedError


def of_rows(part: Tensor, like: Tensor) -> Tensor:
    """Return a value per row, (G, R), broadcast to codes or weights."""
    return part[..., None] if like.dim() == 3 else part


@dataclass(frozen=True, kw_only=True)
class UniformCodes(CodeGrid):
    """Equal steps: ``value = (code - zero_point) scale``.

    Args:
        scale: (G, R) or (1, 1).
        zero_point: Like ``scale``.
        bounds: Lowest and highest code.
        symmetric: Whether a search keeps the zero point at 0.
        low: Value at the lower end of the range that a search tried; None
            is that of the lowest code.
        high: Likewise at the upper end.
    """

    scale: Tensor
    zero_point: Tensor
    bounds: tuple[int, int]
    symmetric: bool = False
    low: Tensor | None = None
    high: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows with a grid of their own."""
        return self.scale.shape[0], self.scale.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """That of the scale."""
        return self.scale.dtype

    @property
    def searches(self) -> int:
        """Both ends together; asymmetric grids: each one alone as well."""
        return 1 if self.symmetric else 3

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the codes next to weights."""
        codes = torch.round(weight / of_rows(self.scale, weight))
        codes = codes + of_rows(self.zero_point, weight)
        return codes.clamp_(*self.bounds)

    def values(self, codes: Tensor) -> Tensor:
        """Return the values of codes."""
        steps = codes - of_rows(self.zero_point, codes)
        return steps * of_rows(self.scale, codes)

    def zeros(self, codes: Tensor) -> Tensor:
        """Return the zero point."""
        return self.zero_point.to(codes).expand_as(codes)

    def cheaper(
        self, codes: Tensor, weight: Tensor, *, cost: Tensor, prices: Tensor
    ) -> Tensor:
        """Return codes, or those next to them towards the zero point.

        The next one is taken where it costs less in all: error x ``cost``
        plus its price (rate-distortion optimised quantization).
        """
        steps = weight / self.scale
        nearer = codes - (codes - self.zero_point).sign()
        prices = prices.to(cost)
        totals = [
            cost * (steps - (one - self.zero_point)).square()
            + prices[(one - self.bounds[0]).long()]
            for one in (codes, nearer)
        ]
        return torch.where(totals[1] < totals[0], nearer, codes)

    def moved(
        self, codes: Tensor, gradient: Tensor, curvature: Tensor
    ) -> Tensor:
        """Return the codes a rounded Newton step away, clamped."""
        steps = (gradient / (self.scale * curvature)).round()
        return (codes + steps).clamp_(*self.bounds)

    def change(self, before: Tensor, after: Tensor) -> Tensor:
        """Return by how much values change with the codes."""
        return (after - before) * self.scale

    def rows(self, place: slice) -> UniformCodes:
        """Return the grid of a range of rows."""
        if self.shape == (1, 1):
            return self
        return self._each(lambda part: part[:, place])

    def put(self, place: slice, grid: Any) -> UniformCodes:
        """Return a grid with that of a range of rows replaced."""
        scale, zero_point = self.scale.clone(), self.zero_point.clone()
        own = slice(None) if self.shape == (1, 1) else place
        scale[:, own], zero_point[:, own] = grid.scale, grid.zero_point
        return self._with(scale, zero_point)

    def expanded(self, shape: tuple[int, int]) -> UniformCodes:
        """Return the same with a grid for each row."""
        return self._each(lambda part: part.expand(shape))

    def double(self) -> UniformCodes:
        """Return the same with a float64 scale."""
        return replace(self, scale=self.scale.double())

    def scaled(self, factor: float) -> UniformCodes:
        """Return a grid with larger steps."""
        return self._with(self.scale * factor, self.zero_point)

    def candidates(
        self, stage: int, weight: Tensor, hessian: Tensor, codes: Tensor
    ) -> list[UniformCodes]:
        """Shrink both ends of the weights' range, then move each alone."""
        del hessian, codes
        if stage == 0:
            low = weight.amin(dim=2).clamp(max=0.0)
            high = weight.amax(dim=2).clamp(min=0.0)
            if self.shape != low.shape:
                low, high = low.amin().reshape(1, 1), high.amax().reshape(1, 1)
            return [self._of_range(r * low, r * high) for r in RATIOS[::-1]]
        low, high = self._ends()
        if stage == 1:
            return [self._of_range(r * low, high) for r in SPREAD]
        return [self._of_range(low, r * high) for r in SPREAD]

    def _ends(self) -> tuple[Tensor, Tensor]:
        if self.low is not None and self.high is not None:
            return self.low, self.high
        low, high = (
            (bound - self.zero_point) * self.scale for bound in self.bounds
        )
        return low, high

    def _of_range(self, low: Tensor, high: Tensor) -> UniformCodes:
        scale, zero_point = range_to_affine(
            low,
            high,
            symmetric=self.symmetric,
            quant_min=self.bounds[0],
            quant_max=self.bounds[1],
        )
        return replace(
            self, scale=scale, zero_point=zero_point, low=low, high=high
        )

    @classmethod
    def side_by_side(
        cls, grids: Sequence[Any], *, groups: int
    ) -> UniformCodes:
        """Return grids as one of further rows."""
        del groups
        found: UniformCodes = grids[0]._with(
            torch.cat([one.scale for one in grids], dim=1),
            torch.cat([one.zero_point for one in grids], dim=1),
        )
        return found

    @classmethod
    def chosen(cls, grids: Sequence[Any], index: Tensor) -> UniformCodes:
        """Return the grid with this index of each row."""
        ends = [one._ends() for one in grids]

        def of(parts: list[Tensor]) -> Tensor:
            parts = [part.to(parts[0]) for part in parts]
            return torch.stack(parts).gather(0, index[None])[0]

        found: UniformCodes = replace(
            grids[0],
            scale=of([one.scale for one in grids]),
            zero_point=of([one.zero_point for one in grids]),
            low=of([low for low, _ in ends]),
            high=of([high for _, high in ends]),
        )
        return found

    def _each(self, change: Callable[[Tensor], Tensor]) -> UniformCodes:
        parts = {
            name: None if part is None else change(part)
            for name in ('scale', 'zero_point', 'low', 'high')
            for part in (getattr(self, name),)
        }
        return replace(self, **parts)  # type: ignore[arg-type]

    def _with(self, scale: Tensor, zero_point: Tensor) -> UniformCodes:
        return replace(
            self, scale=scale, zero_point=zero_point, low=None, high=None
        )
