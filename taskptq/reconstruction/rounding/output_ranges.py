"""Ranges of weights by the error of the layer's output.

The output error of a row w of weights is ``(w_hat - w) H (w_hat - w)^T``
with the second moments H of the inputs, so a search needs no activations:
what a weight that sees large inputs loses counts more. With H = 1 it is the
plain squared error, and inputs that are always zero have no say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from taskptq.core.functional import range_to_affine
from taskptq.core.quantizers import AffineQuantizer

# Elements of one (candidates, G, R, K) working tensor.
CHUNK_ELEMENTS = 1 << 21
RATIOS = tuple(0.4 + 0.05 * i for i in range(13))
SPREAD = (0.7, 0.8, 0.9, 1.1, 1.2)

# Maps (G, R, K) weights, scales and zero points of (G, R) to codes.
Rounder = Callable[[Tensor, Tensor, Tensor], Tensor]


def nearest_codes(bounds: tuple[int, int]) -> Rounder:
    """Return a function that rounds to nearest."""

    def codes(weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        steps = weight / scale[..., None]
        return (steps.round() + zero_point[..., None]).clamp(*bounds)

    return codes


@torch.no_grad()
def search_output_range(
    weight: Tensor,
    hessian: Tensor,
    quantizer: AffineQuantizer,
    *,
    grid: tuple[Tensor, Tensor],
    to_codes: Rounder,
) -> tuple[Tensor, Tensor]:
    """Find the grid of each row with the least output error.

    Both ends shrink together, then each moves alone; the given grid is a
    candidate, so none gets worse.

    Args:
        weight: (G, R, K).
        hessian: (G, K, K).
        quantizer: Its grid's bounds and symmetry are read.
        grid: Calibrated scale and zero point, each (G, R), or (1, 1) for one
            of all rows.
        to_codes: How weights are rounded.

    Returns:
        Scale and zero point, shaped as given.
    """
    search = _Search(weight, hessian, quantizer, grid, to_codes)
    low = weight.amin(dim=2).clamp(max=0.0)
    high = weight.amax(dim=2).clamp(min=0.0)
    if grid[0].shape != low.shape:
        low, high = low.amin().reshape(1, 1), high.amax().reshape(1, 1)
    low, high = search.best((r * low, r * high) for r in RATIOS[::-1])
    if not quantizer.spec.symmetric:
        low, high = search.best((r * low, high) for r in SPREAD)
        low, high = search.best((low, r * high) for r in SPREAD)
    return search.scale, search.zero_point


class _Search:
    """The best grid so far of each row."""

    def __init__(
        self,
        weight: Tensor,
        hessian: Tensor,
        quantizer: AffineQuantizer,
        grid: tuple[Tensor, Tensor],
        to_codes: Rounder,
    ) -> None:
        self.weight = weight.double()
        self.hessian = hessian.double()
        self.symmetric = quantizer.spec.symmetric
        self.bounds = (quantizer.quant_min, quantizer.quant_max)
        self.to_codes = to_codes
        self.scale, self.zero_point = grid
        ends = [
            (bound - self.zero_point) * self.scale for bound in self.bounds
        ]
        self.low, self.high = ends
        self.error = self._errors(self.scale[None], self.zero_point[None])[0]

    def best(
        self, candidates: Iterable[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Try ranges shaped like the grid; return the best ends so far.

        Ties stay with what came first.
        """
        ends = list(candidates)
        low = torch.stack([low for low, _ in ends])
        high = torch.stack([high for _, high in ends])
        scale, zero_point = range_to_affine(
            low,
            high,
            symmetric=self.symmetric,
            quant_min=self.bounds[0],
            quant_max=self.bounds[1],
        )
        errors = self._errors(scale, zero_point)
        error, index = errors.min(dim=0)
        better = error < self.error
        for name, values in (
            ('scale', scale),
            ('zero_point', zero_point),
            ('low', low),
            ('high', high),
            ('error', errors),
        ):
            chosen = values.gather(0, index[None])[0].to(getattr(self, name))
            kept = torch.where(better, chosen, getattr(self, name))
            setattr(self, name, kept)
        return self.low, self.high

    def _errors(self, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the errors of (C, G, R) grids, or (C, 1, 1)."""
        size = max(1, CHUNK_ELEMENTS // self.weight.numel())
        return torch.cat(
            [
                self._chunk(scale[i : i + size], zero_point[i : i + size])
                for i in range(0, scale.shape[0], size)
            ]
        )

    def _chunk(self, scale: Tensor, zero_point: Tensor) -> Tensor:
        groups, rows, _ = self.weight.shape
        count = scale.shape[0]
        # Candidates as further rows: C x G x R -> G x (C R)
        grids = [
            part.expand(count, groups, rows).transpose(0, 1).flatten(1)
            for part in (scale, zero_point)
        ]
        weight = self.weight.repeat(1, count, 1)
        codes = self.to_codes(weight, *grids)
        error = weight - grids[0][..., None] * (codes - grids[1][..., None])
        products: Tensor = ((error @ self.hessian) * error).sum(dim=2)
        errors = products.reshape(groups, count, rows).transpose(0, 1)
        if scale.shape[1:] == (1, 1) and (groups, rows) != (1, 1):
            return torch.sum(errors, dim=(1, 2), keepdim=True)
        return errors
