"""Rounding of matrices column by column, errors going to later columns.

GPTQ, Frantar et al., ICLR 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from taskptq.core.code_grid import CodeGrid
from taskptq.reconstruction.rounding.kept_weights import MAX_DAMPING


class ColumnSolver:
    """Rounds weights by fixed Hessians; factorises them once.

    Args:
        hessian: (G, K, K), one per group.
        damping: See :func:`gptq_codes`.
        block_size: See :func:`gptq_codes`.
        act_order: See :func:`gptq_codes`.
    """

    def __init__(
        self,
        hessian: Tensor,
        *,
        damping: float = 0.01,
        block_size: int = 128,
        act_order: bool = True,
    ) -> None:
        hessian = hessian.to(torch.float64)
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        # G x K; most important inputs first, dead ones last
        if act_order:
            order = diagonal.argsort(dim=1, descending=True, stable=True)
        else:
            order = torch.arange(diagonal.shape[1], device=hessian.device)
            order = order.expand_as(diagonal)
        self.order = order
        self.block_size = block_size
        self.factor = _inverse_factor(
            _permuted(hessian, order), damping=damping
        )

    def codes(
        self,
        weight: Tensor,
        *,
        grid: CodeGrid,
        mask: Tensor | None = None,
        prices: Tensor | None = None,
    ) -> Tensor:
        """Return int32 codes of (G, R, K) weights.

        Args:
            weight: (G, R, K).
            grid: What codes stand for, of (G, R) or (1, 1) rows.
            mask: Which weights are not 0, bool (G, R, K); None is any.
            prices: See :class:`Quantizer`.
        """
        work = weight.to(torch.float64)
        columns = self.order[:, None].expand_as(work)
        rounding = _ColumnRounding(
            work.gather(2, columns),
            self.factor,
            grid=grid,
            mask=None if mask is None else mask.gather(2, columns),
            prices=prices,
        )
        for first in range(0, work.shape[2], self.block_size):
            last = min(first + self.block_size, work.shape[2])
            rounding.block(first, last)
        codes = torch.empty_like(rounding.codes)
        codes.scatter_(2, columns, rounding.codes)
        return codes.to(torch.int32)


class _ColumnRounding:
    """Round columns in order; propagate each error to later columns."""

    def __init__(
        self,
        weight: Tensor,
        factor: Tensor,
        *,
        grid: CodeGrid,
        mask: Tensor | None = None,
        prices: Tensor | None = None,
    ) -> None:
        self.mask = mask
        self.prices = prices
        diagonal = factor.diagonal(dim1=1, dim2=2).square().reciprocal()
        # Output error of a squared step in each column, 1 in the mean.
        self.cost = diagonal / diagonal.mean(dim=1, keepdim=True)
        self.weight = weight
        self.factor = factor
        self.grid = grid
        self.exact = grid.double()
        self.codes = torch.empty_like(weight)

    def block(self, first: int, last: int) -> None:
        """Round columns [first, last), then update all that follow."""
        errors = torch.empty_like(self.weight[:, :, first:last])
        for i in range(first, last):
            column = self.weight[:, :, i]
            # In the grid's dtype, so that ties round as in quantize().
            single = column.to(self.grid.dtype)
            codes = self.grid.nearest(single)
            if self.prices is not None:
                codes = self.grid.cheaper(
                    codes,
                    single,
                    cost=self.cost[:, i, None],
                    prices=self.prices,
                )
            if self.mask is not None:
                zeros = self.grid.zeros(codes)
                codes = torch.where(self.mask[:, :, i], codes, zeros)
            self.codes[:, :, i] = codes
            error = column - self.exact.values(codes)
            error = error / self.factor[:, i, i, None]
            self.weight[:, :, i:last] -= (
                error[:, :, None] * self.factor[:, None, i, i:last]
            )
            errors[:, :, i - first] = error
        self.weight[:, :, last:] -= errors @ self.factor[:, first:last, last:]


def _permuted(hessian: Tensor, order: Tensor) -> Tensor:
    rows = hessian.gather(1, order[:, :, None].expand_as(hessian))
    return rows.gather(2, order[:, None, :].expand_as(hessian))


def _inverse_factor(hessian: Tensor, *, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the damped inverse, (G, K, K).

    Inputs that were always zero get the mean diagonal: their weights affect
    no seen output, so they are rounded to nearest.
    """
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    mean = mean.masked_fill(mean == 0, 1.0)
    dead = torch.diag_embed((diagonal == 0) * mean)
    while damping <= MAX_DAMPING:
        damped = (
            hessian
            + dead
            + torch.diag_embed((mean * damping).expand_as(diagonal))
        )
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed.any():
            inverse = torch.cholesky_inverse(lower)
            factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed.any():
                upper: Tensor = factor
                return upper
        damping = max(damping, 1e-4) * 10
    raise ValueError(
        f'the Hessian of shape {tuple(hessian.shape)} cannot be factorised '
        f'with any damping up to {MAX_DAMPING}, so it cannot be a second '
        'moment of inputs: accumulate it with HessianAccumulator, or use '
        'rounding="nearest" for this layer'
    )
