"""Fit one weight of a layer, and its bias, to the float model's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskptq.core.entropy import code_counts, count_bits
from taskptq.core.quantizers import AffineQuantizer
from taskptq.modules.base import QuantModule
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.rounding.descent import descend
from taskptq.reconstruction.rounding.gptq import (
    ColumnSolver,
    from_matrix,
    groups_of,
    mask_matrix,
    to_matrix,
)
from taskptq.reconstruction.rounding.kept_weights import (
    damped_moments,
    fit_kept,
)
from taskptq.reconstruction.rounding.moments import Moments
from taskptq.reconstruction.rounding.output_ranges import (
    nearest_codes,
    search_output_range,
)

# How often a grid gets coarser for its bits; two times are enough mostly.
MAX_COARSER = 6

Rows = Sequence[tuple[slice, Moments]]


@dataclass
class _Part:
    """The grid and codes found for some rows of a weight."""

    scale: Tensor
    zero_point: Tensor
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
    shape = (matrix.shape[0], matrix.shape[1])
    if quantizer.scale.numel() == 1:
        shape = (1, 1)
    scale = quantizer.scale.detach().reshape(shape).clone()
    zero_point = quantizer.zero_point.reshape(shape).clone()
    mask = mask_matrix(quantizer.mask, groups=groups, transposed=transposed)
    codes = _solve_rows(
        matrix, rows, quantizer, (scale, zero_point), config, mask=mask
    )
    for _ in range(MAX_COARSER):
        factor = _coarser(codes, quantizer)
        if factor == 1 or not config.solves_codes:
            break
        scale *= factor
        codes = _solve_rows(
            matrix, rows, quantizer, (scale, zero_point), config, mask=mask
        )
    if config.output_ranges or quantizer.max_bits is not None:
        set_grid(quantizer, scale.reshape(-1), zero_point.reshape(-1))
    if config.solves_codes:
        codes = from_matrix(codes, shape=weight.shape, transposed=transposed)
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
    quantizer: AffineQuantizer,
    grid: tuple[Tensor, Tensor],
    config: ReconstructionConfig,
    *,
    mask: Tensor | None,
) -> Tensor:
    """Return the codes of (G, R, K) weights; ranges are found in place."""
    scale, zero_point = grid
    codes = torch.empty_like(matrix, dtype=torch.int32)
    for place, moments in rows:
        own = slice(None) if scale.shape == (1, 1) else place
        part = _solve(
            matrix[:, place],
            moments,
            quantizer,
            (scale[:, own], zero_point[:, own]),
            config,
            mask=None if mask is None else mask[:, place],
        )
        codes[:, place] = part.codes
        scale[:, own], zero_point[:, own] = part.scale, part.zero_point
    return codes


def _coarser(codes: Tensor, quantizer: AffineQuantizer) -> float:
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


def set_grid(
    quantizer: AffineQuantizer, scale: Tensor, zero_point: Tensor
) -> None:
    """Replace a calibrated grid's scale and zero point, (C,) each."""
    quantizer.scale.data = scale.to(quantizer.scale)
    quantizer.zero_point = zero_point.to(quantizer.zero_point)


def _solve(
    weight: Tensor,
    moments: Moments,
    quantizer: AffineQuantizer,
    grid: tuple[Tensor, Tensor],
    config: ReconstructionConfig,
    *,
    mask: Tensor | None = None,
) -> _Part:
    """Find grid and codes of (G, R, K) weights."""
    bounds = (quantizer.quant_min, quantizer.quant_max)
    damped = damped_moments(moments.hessian, damping=config.gptq_damping)
    target = weight.double()
    if config.match_float:
        target = matched_weight(target, moments, damped)
    if mask is not None:
        target = fit_kept(target, damped, mask)
    to_codes = nearest_codes(bounds)
    if config.solves_codes:
        solver = ColumnSolver(moments.hessian, damping=config.gptq_damping)

        def to_codes(w: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
            # A search has the rows once for each of its candidates.
            own = mask
            if mask is not None:
                own = mask.repeat(1, w.shape[1] // mask.shape[1], 1)
            return solver.codes(
                w,
                scale=scale,
                zero_point=zero_point,
                bounds=bounds,
                mask=own,
                prices=quantizer.prices,
            )

    if config.output_ranges:
        grid = search_output_range(
            target * _seen(moments.hessian)[:, None],
            damped,
            quantizer,
            grid=grid,
            to_codes=to_codes,
        )
    scale, zero_point = (
        part.expand(target.shape[:2]) if part.shape == (1, 1) else part
        for part in grid
    )
    codes = to_codes(target, scale, zero_point)
    if config.solves_codes and config.gptq_sweeps:
        codes = descend(
            codes,
            target,
            damped,
            scale=scale,
            zero_point=zero_point,
            bounds=bounds,
            sweeps=config.gptq_sweeps,
            mask=mask,
        )
    return _Part(*grid, codes=codes.to(torch.int32))


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
