"""Grids of weights by the error of the layer's output.

The output error of a row w of weights is ``(w_hat - w) H (w_hat - w)^T``
with the second moments H of the inputs, so a search needs no activations:
what a weight that sees large inputs loses counts more. With H = 1 it is the
plain squared error, and inputs that are always zero have no say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from taskptq.core.code_grid import CodeGrid

# Elements of one (candidates, G, R, K) working tensor.
CHUNK_ELEMENTS = 1 << 21

# Maps (G, R, K) weights and their grid to codes.
Rounder = Callable[[Tensor, CodeGrid], Tensor]


def nearest_codes(weight: Tensor, grid: CodeGrid) -> Tensor:
    """Round to nearest."""
    return grid.nearest(weight)


@torch.no_grad()
def search_output_range(
    weight: Tensor,
    hessian: Tensor,
    grid: CodeGrid,
    *,
    to_codes: Rounder = nearest_codes,
) -> CodeGrid:
    """Find the grid of each row with the least output error.

    The grid says what to try; the given one is a candidate, so no row gets
    worse.

    Args:
        weight: (G, R, K).
        hessian: (G, K, K).
        grid: Calibrated, of (G, R) rows, or (1, 1) for one of all rows.
        to_codes: How weights are rounded.

    Returns:
        A grid of as many rows as the given one.
    """
    weight, hessian = weight.double(), hessian.double()
    score = _Score(weight, hessian, to_codes)
    error = score.errors([grid])[0]
    for stage in range(grid.searches):
        codes = to_codes(weight, grid.expanded(_shape(weight)))
        tried = grid.candidates(stage, weight, hessian, codes)
        errors = score.errors(tried)
        least, index = errors.min(dim=0)
        found = grid.chosen(tried, index)
        # Ties stay with what came first.
        better = least < error
        grid = grid.chosen([grid, found], better.long())
        error = torch.where(better, least, error)
    return grid


def _shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]


class _Score:
    """Output errors of grids."""

    def __init__(
        self, weight: Tensor, hessian: Tensor, to_codes: Rounder
    ) -> None:
        self.weight = weight
        self.hessian = hessian
        self.to_codes = to_codes

    def errors(self, grids: Sequence[CodeGrid]) -> Tensor:
        """Return the errors of n grids, (n, G, R), or (n, 1, 1)."""
        size = max(1, CHUNK_ELEMENTS // self.weight.numel())
        return torch.cat(
            [
                self._chunk(grids[i : i + size])
                for i in range(0, len(grids), size)
            ]
        )

    def _chunk(self, grids: Sequence[CodeGrid]) -> Tensor:
        groups, rows = _shape(self.weight)
        count = len(grids)
        # Candidates as further rows
        grid = grids[0].side_by_side(
            [one.expanded((groups, rows)) for one in grids], groups=groups
        )
        weight = self.weight.repeat(1, count, 1)
        error = weight - grid.values(self.to_codes(weight, grid))
        products: Tensor = ((error @ self.hessian) * error).sum(dim=2)
        errors = products.reshape(groups, count, rows).transpose(0, 1)
        if grids[0].shape == (1, 1) and (groups, rows) != (1, 1):
            return torch.sum(errors, dim=(1, 2), keepdim=True)
        return errors
