"""Closed-form second-order rounding of weights, without back-propagation.

GPTQ, Frantar et al., ICLR 2023: columns are rounded one by one, and later
columns compensate for the error of each rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taskptq.core import AffineQuantizer
from taskptq.modules.base import QuantModule
from taskptq.reconstruction.rounding.hessian import HessianAccumulator
from taskptq.reconstruction.rounding.kept_weights import (
    MAX_DAMPING,
    damped_moments,
    fit_kept,
)

__all__ = [
    'ColumnSolver',
    'HessianAccumulator',
    'from_matrix',
    'gptq_codes',
    'gptq_layer',
    'groups_of',
    'mask_matrix',
    'to_matrix',
]


@torch.no_grad()
def gptq_codes(
    weight: Tensor,
    hessian: Tensor,
    quantizer: AffineQuantizer,
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
        scale=quantizer.scale.detach().reshape(1, -1),
        zero_point=quantizer.zero_point.reshape(1, -1),
        bounds=(quantizer.quant_min, quantizer.quant_max),
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
    # The rows of a group are output channels, each with its own scale.
    shape = (1 if transposed else groups, -1)
    scale = quantizer.scale.detach()
    scale = scale.reshape(shape if scale.numel() > 1 else (1, 1))
    zero_point = quantizer.zero_point.reshape(scale.shape)
    mask = mask_matrix(quantizer.mask, groups=groups, transposed=transposed)
    codes = torch.empty_like(matrix, dtype=torch.int32)
    for rows, part in _row_slices(hessian, matrix.shape[1]):
        part = part if part.dim() == 3 else part[None]
        own = matrix[:, rows]
        if mask is not None:
            known = damped_moments(part.double(), damping=damping)
            own = fit_kept(own, known, mask[:, rows]).to(matrix)
        single = scale.shape[1] == 1
        codes[:, rows] = _grouped_codes(
            own,
            part,
            scale=scale if single else scale[:, rows],
            zero_point=zero_point if single else zero_point[:, rows],
            bounds=(quantizer.quant_min, quantizer.quant_max),
            damping=damping,
            block_size=block_size,
            act_order=act_order,
            mask=None if mask is None else mask[:, rows],
            prices=quantizer.prices,
        )
    return from_matrix(codes, shape=weight.shape, transposed=transposed)


def groups_of(layer: nn.Module) -> int:
    """Return the groups of a convolution, 1 for other layers."""
    is_conv = isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    return int(layer.groups) if is_conv else 1  # type: ignore[arg-type]


def to_matrix(weight: Tensor, *, groups: int, transposed: bool) -> Tensor:
    """View a weight as (groups, rows, K), rows being output channels."""
    if not transposed:
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    # (groups C_in) x C_out x kH x kW -> groups x C_out x (C_in kH kW)
    parts = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2)
    return parts.flatten(2)


def mask_matrix(
    mask: Tensor | None, *, groups: int, transposed: bool
) -> Tensor | None:
    """View the mask of a weight like :func:`to_matrix`; None stays None."""
    if mask is None:
        return None
    return to_matrix(mask, groups=groups, transposed=transposed)


def from_matrix(
    matrix: Tensor, *, shape: torch.Size, transposed: bool
) -> Tensor:
    """Undo :func:`to_matrix`."""
    if not transposed:
        return matrix.reshape(shape)
    parts = matrix.reshape(*matrix.shape[:2], -1, *shape[2:])
    return parts.transpose(1, 2).reshape(shape)


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
    scale: Tensor,
    zero_point: Tensor,
    bounds: tuple[int, int],
    damping: float,
    block_size: int,
    act_order: bool,
    mask: Tensor | None = None,
    prices: Tensor | None = None,
) -> Tensor:
    """Round (G, R, K) weights by one (K, K) Hessian per group, (G, K, K).

    ``scale`` and ``zero_point`` broadcast to (G, R); ``mask`` is (G, R, K).
    """
    _check(weight, hessian, damping=damping, block_size=block_size)
    solver = ColumnSolver(
        hessian, damping=damping, block_size=block_size, act_order=act_order
    )
    return solver.codes(
        weight,
        scale=scale,
        zero_point=zero_point,
        bounds=bounds,
        mask=mask,
        prices=prices,
    )


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
        scale: Tensor,
        zero_point: Tensor,
        bounds: tuple[int, int],
        mask: Tensor | None = None,
        prices: Tensor | None = None,
    ) -> Tensor:
        """Return int32 codes of (G, R, K) weights.

        Args:
            weight: (G, R, K).
            scale: Broadcasts to (G, R).
            zero_point: Like ``scale``.
            bounds: Lowest and highest code.
            mask: Which weights are not 0, bool (G, R, K); None is any.
            prices: See :class:`Quantizer`.
        """
        work = weight.to(torch.float64)
        columns = self.order[:, None].expand_as(work)
        rounding = _ColumnRounding(
            work.gather(2, columns),
            self.factor,
            scale=scale,
            zero_point=zero_point,
            bounds=bounds,
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
        scale: Tensor,
        zero_point: Tensor,
        bounds: tuple[int, int],
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
        self.scale = scale
        self.zero_point = zero_point
        self.bounds = bounds
        self.codes = torch.empty_like(weight)

    def block(self, first: int, last: int) -> None:
        """Round columns [first, last), then update all that follow."""
        errors = torch.empty_like(self.weight[:, :, first:last])
        for i in range(first, last):
            column = self.weight[:, :, i]
            # In the scale's dtype, so that ties round as in quantize().
            steps = column.to(self.scale.dtype) / self.scale
            codes = torch.round(steps) + self.zero_point
            codes.clamp_(*self.bounds)
            if self.prices is not None:
                codes = self._cheaper(codes, steps, self.cost[:, i, None])
            if self.mask is not None:
                zeros = self.zero_point.to(codes).expand_as(codes)
                codes = torch.where(self.mask[:, :, i], codes, zeros)
            self.codes[:, :, i] = codes
            error = column - (codes - self.zero_point) * self.scale.double()
            error = error / self.factor[:, i, i, None]
            self.weight[:, :, i:last] -= (
                error[:, :, None] * self.factor[:, None, i, i:last]
            )
            errors[:, :, i - first] = error
        self.weight[:, :, last:] -= errors @ self.factor[:, first:last, last:]

    def _cheaper(self, codes: Tensor, steps: Tensor, cost: Tensor) -> Tensor:
        """Return the codes, or those next to them towards the zero point.

        The next one is taken where it costs less in all: error x ``cost``
        plus its price (rate-distortion optimised quantization).
        """
        assert self.prices is not None
        distance = codes - self.zero_point
        nearer = codes - distance.sign()
        prices = self.prices.to(cost)
        low = self.bounds[0]
        totals = [
            cost * (steps - (one - self.zero_point)).square()
            + prices[(one - low).long()]
            for one in (codes, nearer)
        ]
        return torch.where(totals[1] < totals[0], nearer, codes)


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
