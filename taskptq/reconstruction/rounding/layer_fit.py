"""Fit one weight of a layer, and its bias, to the float model's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskptq.core.base_quantizer import CodedQuantizer
from taskptq.core.code_grid import CodeGrid
from taskptq.core.entropy import code_counts, count_bits
from taskptq.modules.base import QuantModule
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.rounding.column_solver import ColumnSolver
from taskptq.reconstruction.rounding.descent import descend
from taskptq.reconstruction.rounding.kept_weights import (
    damped_moments,
    fit_kept,
)
from taskptq.reconstruction.rounding.moments import Moments
from taskptq.reconstruction.rounding.output_ranges import (
    Rounder,
    nearest_codes,
    search_output_range,
)
from taskptq.reconstruction.rounding.weight_matrix import (
    from_matrix,
    groups_of,
    mask_matrix,
    to_matrix,
)

# How often a grid gets coarser for its bits; two times are enough mostly.
MAX_COARSER = 6

Rows = Sequence[tuple[slice, Moments]]


@dataclass
class _Part:
    """The grid and codes found for some rows of a weight."""

    grid: CodeGrid
    codes: Tensor  # G x R x K


@torch.no_grad()
def fit_layer(
    layer: QuantModule,
    parameter: str,
    rows: Rows,
    config: ReconstructionConfig,
) -> None:
    """Set range, codes and bias of one weight as the settings ask.

    Args:
        layer: Counterpart with a calibrated weight quantizer.
        parameter: Name of the weight.
        rows: Moments of each row range.
        config: ``match_float``, ``output_ranges``, ``bias_correction``,
            ``gptq_damping``, ``gptq_sweeps`` and what solves the rounding.
    """
    quantizer = layer.weight_quantizer_of(parameter)
    if quantizer is None:
        if config.solves_codes:
            parts = [(place, found.hessian, found) for place, found in rows]
            values = fit_float(layer, parameter, parts, config)
            layer.set_codes(parameter, values)
        if config.bias_correction:
            correct_bias(layer, parameter, rows)
        return
    weight: Tensor = getattr(layer, parameter).detach()
    transposed = layer.weight_axis(parameter) == 1
    groups = groups_of(layer)
    matrix = to_matrix(weight, groups=groups, transposed=transposed)
    grid = quantizer.code_grid((matrix.shape[0], matrix.shape[1]))
    mask = mask_matrix(quantizer.mask, groups=groups, transposed=transposed)
    part = _solve_rows(matrix, rows, quantizer, grid, config, mask=mask)
    for _ in range(MAX_COARSER):
        factor = _coarser(part.codes, quantizer)
        if factor == 1 or not config.solves_codes:
            break
        grid = part.grid.scaled(factor)
        part = _solve_rows(matrix, rows, quantizer, grid, config, mask=mask)
    if config.output_ranges or quantizer.max_bits is not None:
        quantizer.set_code_grid(part.grid)
    if config.solves_codes:
        codes = from_matrix(
            part.codes, shape=weight.shape, transposed=transposed
        )
        layer.set_codes(parameter, codes)
    if config.bias_correction:
        correct_bias(layer, parameter, rows)


@torch.no_grad()
def fit_float(
    layer: QuantModule,
    parameter: str,
    rows: Sequence[tuple[slice, Tensor, Moments | None]],
    config: ReconstructionConfig,
) -> Tensor:
    """Return the values of a masked float weight, by least squares.

    Args:
        layer: Counterpart whose weight stays float.
        parameter: Name of the weight.
        rows: Each row range with the second moments of its inputs, (G, K, K),
            and what ``match_float`` reads.
        config: ``gptq_damping`` and ``match_float``.
    """
    quantizer = layer.weight_values_of(parameter)
    weight: Tensor = getattr(layer, parameter).detach()
    transposed = layer.weight_axis(parameter) == 1
    groups = groups_of(layer)
    mask = mask_matrix(
        None if quantizer is None else quantizer.mask,
        groups=groups,
        transposed=transposed,
    )
    if mask is None:
        return weight
    matrix = to_matrix(weight, groups=groups, transposed=transposed).clone()
    for place, hessian, moments in rows:
        damped = damped_moments(hessian, damping=config.gptq_damping)
        target = matrix[:, place].double()
        if config.match_float and moments is not None:
            target = matched_weight(target, moments, damped)
        matrix[:, place] = fit_kept(target, damped, mask[:, place]).to(matrix)
    return from_matrix(matrix, shape=weight.shape, transposed=transposed)


def _solve_rows(
    matrix: Tensor,
    rows: Rows,
    quantizer: CodedQuantizer,
    grid: CodeGrid,
    config: ReconstructionConfig,
    *,
    mask: Tensor | None,
) -> _Part:
    """Return the grid and codes of (G, R, K) weights."""
    codes = torch.empty_like(matrix, dtype=torch.int32)
    for place, moments in rows:
        part = _solve(
            matrix[:, place],
            moments,
            quantizer,
            grid.rows(place),
            config,
            mask=None if mask is None else mask[:, place],
        )
        codes[:, place] = part.codes
        grid = grid.put(place, part.grid)
    return _Part(grid=grid, codes=codes)


def _coarser(codes: Tensor, quantizer: CodedQuantizer) -> float:
    """Return by how much the step has to grow for ``max_bits``; 1 if none.

    What makes up for errors spreads the codes, most where they are few. At
    high rates twice the step saves a bit of each weight, at low ones less.
    """
    if quantizer.max_bits is None:
        return 1.0
    bounds = (quantizer.quant_min, quantizer.quant_max)
    bits = count_bits(code_counts(codes, bounds=bounds))
    excess = (bits - quantizer.max_bits) / codes.numel()
    if excess <= 0:
        return 1.0
    rate = max(quantizer.max_bits / codes.numel(), 0.2)
    return float(2 ** min(1.1 * excess / min(rate, 1.0) + 0.003, 1.0))


def _solve(
    weight: Tensor,
    moments: Moments,
    quantizer: CodedQuantizer,
    grid: CodeGrid,
    config: ReconstructionConfig,
    *,
    mask: Tensor | None = None,
) -> _Part:
    """Find grid and codes of (G, R, K) weights."""
    damped = damped_moments(moments.hessian, damping=config.gptq_damping)
    target = weight.double()
    if config.match_float:
        target = matched_weight(target, moments, damped)
    if mask is not None:
        target = fit_kept(target, damped, mask)
    to_codes: Rounder = nearest_codes
    if config.solves_codes:
        solver = ColumnSolver(moments.hessian, damping=config.gptq_damping)

        def solve(w: Tensor, grid: CodeGrid) -> Tensor:
            # A search has the rows once for each of its candidates.
            own = mask
            if mask is not None:
                own = mask.repeat(1, w.shape[1] // mask.shape[1], 1)
            return solver.codes(
                w, grid=grid, mask=own, prices=quantizer.prices
            )

        to_codes = solve
    if config.output_ranges:
        grid = search_output_range(
            target * _seen(moments.hessian)[:, None],
            damped,
            grid,
            to_codes=to_codes,
        )
    groups, count = target.shape[:2]
    whole = grid.expanded((groups, count))
    codes = to_codes(target, whole)
    if config.solves_codes and config.gptq_sweeps:
        codes = descend(
            codes,
            target,
            damped,
            grid=whole,
            sweeps=config.gptq_sweeps,
            mask=mask,
        )
    return _Part(grid=grid, codes=codes.to(torch.int32))


def _seen(hessian: Tensor) -> Tensor:
    """Return where an input ever moved, (G, K): others have no say."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    return diagonal > 1e-12 * diagonal.amax(dim=1, keepdim=True)


def matched_weight(weight: Tensor, moments: Moments, damped: Tensor) -> Tensor:
    """Return float weights that undo the error of the inputs so far.

    V minimizes ``E |W y - V x|^2 + d |V - W|^2`` for inputs y of the float
    and x of the quantized model: ``V = W (E[y x^T] + d) (E[x x^T] + d)^-1``,
    d being the damping.

    Args:
        weight: (G, R, K).
        moments: Of the inputs.
        damped: Their Hessian with the damping added.

    Returns:
        (G, R, K), float64.
    """
    cross = moments.cross + (damped - moments.hessian)
    right = weight.double() @ cross
    solved: Tensor = torch.linalg.solve(damped, right, left=False)
    return solved


@torch.no_grad()
def correct_bias(layer: QuantModule, parameter: str, rows: Rows) -> None:
    """Give the quantized layer the float layer's mean output.

    ``b' = b + W E[y] - W_q E[x]`` for inputs y of the float and x of the
    quantized model (Nagel et al., ICCV 2019, section 4.2, from data instead
    of BatchNorm's statistics). A layer without a bias stays as it is.

    Args:
        layer: Counterpart with a calibrated weight quantizer.
        parameter: Name of the weight.
        rows: Moments of each row range.
    """
    bias = layer.bias_of(parameter)
    quantizer = layer.weight_values_of(parameter)
    if bias is None or quantizer is None:
        return
    groups = groups_of(layer)
    transposed = layer.weight_axis(parameter) == 1

    def as_matrix(values: Tensor) -> Tensor:
        return to_matrix(
            values.detach(), groups=groups, transposed=transposed
        ).double()

    exact = as_matrix(getattr(layer, parameter))
    quant = as_matrix(quantizer.dequantize(layer.codes(parameter)))
    change = exact.new_zeros(exact.shape[:2])
    for place, moments in rows:
        means = moments.float_mean[..., None], moments.mean[..., None]
        change[:, place] = (
            exact[:, place] @ means[0] - quant[:, place] @ means[1]
        )[..., 0]
    layer.set_bias(parameter, bias.double() + change.reshape(-1))
