"""Closed-form second-order rounding of weights, without back-propagation.

GPTQ, Frantar et al., ICLR 2023: columns are rounded one by one, and later
columns compensate for the error of each rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskptq.core.base_quantizer import CodedQuantizer
from taskptq.core.code_grid import CodeGrid
from taskptq.modules.base import QuantModule
from taskptq.reconstruction.rounding.column_solver import ColumnSolver
from taskptq.reconstruction.rounding.hessian import HessianAccumulator
from taskptq.reconstruction.rounding.kept_weights import (
    damped_moments,
    fit_kept,
)
from taskptq.reconstruction.rounding.weight_matrix import (
    from_matrix,
    groups_of,
    mask_matrix,
    to_matrix,
)

__all__ = ['HessianAccumulator', 'gptq_codes', 'gptq_layer']


@torch.no_grad()
def gptq_codes(
    weight: Tensor,
    hessian: Tensor,
    quantizer: CodedQuantizer,
    *,
    damping: float = 0.01,
    block_size: int = 128,
    act_order: bool = True,
) -> Tensor:
    """Round a matrix so that its output on the seen inputs changes least.

    Args:
        weight: (C_out, K).
        hessian: (K, K), ``2 / n X X^T`` of the inputs X (K, n).
        quantizer: Calibrated; per tensor or one scale per row.
        damping: Share of the mean diagonal added to the diagonal; grows
            tenfold until the Hessian can be factorised.
        block_size: Columns rounded before the rest is updated.
        act_order: Round the columns of large inputs first.

    Returns:
        int32 codes, (C_out, K).

    Raises:
        ValueError: If shapes don't fit, a setting is out of range, or the
            Hessian is not finite or cannot be factorised.
    """
    return _grouped_codes(
        weight[None],
        hessian[None],
        grid=quantizer.code_grid((1, weight.shape[0])),
        damping=damping,
        block_size=block_size,
        act_order=act_order,
    )[0]


@torch.no_grad()
def gptq_layer(
    module: QuantModule,
    parameter: str,
    hessian: Tensor | Sequence[tuple[slice, Tensor]],
    *,
    damping: float = 0.01,
    block_size: int = 128,
    act_order: bool = True,
) -> Tensor:
    """Round one weight of a counterpart.

    Args:
        module: Counterpart whose weight quantizer is calibrated.
        parameter: Name of the weight.
        hessian: From :meth:`HessianAccumulator.hessian`, (groups, K, K) or
            (K, K). For a fused projection, whose row ranges see different
            inputs, (rows, Hessian) pairs that cover each row once.
        damping: See :func:`gptq_codes`.
        block_size: See :func:`gptq_codes`.
        act_order: See :func:`gptq_codes`.

    Returns:
        int32 codes, shaped like the weight, for ``module.set_codes``.

    Raises:
        ValueError: See :func:`gptq_codes`; also if the weight has no
            calibrated quantizer or the row ranges don't cover it.
    """
    weight: Tensor = getattr(module, parameter).detach()
    quantizer = module.weight_quantizer_of(parameter)
    if quantizer is None or not quantizer.calibrated:
        raise ValueError(
            f'{parameter!r} of {type(module).__name__} has no calibrated '
            'quantizer: calibrate its weights first, or leave it float'
        )
    groups = groups_of(module)
    # Grouped counterparts store their weight like a convolution.
    transposed = module.weight_axis(parameter) == 1
    matrix = to_matrix(weight, groups=groups, transposed=transposed)
    # The rows of a group are output channels, each with its own grid.
    grid = quantizer.code_grid((1 if transposed else groups, matrix.shape[1]))
    mask = mask_matrix(quantizer.mask, groups=groups, transposed=transposed)
    codes = torch.empty_like(matrix, dtype=torch.int32)
    for rows, part in _row_slices(hessian, matrix.shape[1]):
        part = part if part.dim() == 3 else part[None]
        own = matrix[:, rows]
        if mask is not None:
            known = damped_moments(part.double(), damping=damping)
            own = fit_kept(own, known, mask[:, rows]).to(matrix)
        codes[:, rows] = _grouped_codes(
            own,
            part,
            grid=grid.rows(rows),
            damping=damping,
            block_size=block_size,
            act_order=act_order,
            mask=None if mask is None else mask[:, rows],
            prices=quantizer.prices,
        )
    return from_matrix(codes, shape=weight.shape, transposed=transposed)


def _row_slices(
    hessian: Tensor | Sequence[tuple[slice, Tensor]],
    num_rows: int,
) -> list[tuple[slice, Tensor]]:
    if isinstance(hessian, Tensor):
        return [(slice(0, num_rows), hessian)]
    parts = sorted(
        ((range(num_rows)[rows], part) for rows, part in hessian),
        key=lambda item: item[0].start,
    )
    covered = [row for rows, _ in parts for row in rows]
    if covered != list(range(num_rows)):
        raise ValueError(
            f'the row ranges {[(r.start, r.stop) for r, _ in parts]} do not '
            f'cover each of the {num_rows} rows of the weight once'
        )
    return [(slice(rows.start, rows.stop), part) for rows, part in parts]


def _grouped_codes(
    weight: Tensor,
    hessian: Tensor,
    *,
    grid: CodeGrid,
    damping: float,
    block_size: int,
    act_order: bool,
    mask: Tensor | None = None,
    prices: Tensor | None = None,
) -> Tensor:
    """Round (G, R, K) weights by one (K, K) Hessian per group, (G, K, K).

    ``mask`` is (G, R, K).
    """
    _check(weight, hessian, damping=damping, block_size=block_size)
    solver = ColumnSolver(
        hessian, damping=damping, block_size=block_size, act_order=act_order
    )
    return solver.codes(
        weight,
        grid=grid,
        mask=mask,
        prices=prices,
    )


def _check(
    weight: Tensor, hessian: Tensor, *, damping: float, block_size: int
) -> None:
    groups, _, inputs = weight.shape
    if hessian.shape != (groups, inputs, inputs):
        raise ValueError(
            f'hessian has shape {tuple(hessian.shape)}, but a weight of '
            f'{groups} group(s) and {inputs} inputs needs '
            f'{(groups, inputs, inputs)}'
        )
    if damping < 0 or block_size < 1:
        raise ValueError(
            f'damping={damping} must be >= 0 and block_size={block_size} >= 1'
        )
    if not hessian.isfinite().all():
        raise ValueError(
            'hessian holds NaN or infinity: the calibration inputs of this '
            'layer are not finite'
        )
