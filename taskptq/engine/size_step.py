"""The step that gives weights the grids of a file of the wished size."""

from __future__ import annotations

import copy
import io
import logging
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.analysis.sensitivity.gradient import (
    NotDifferentiableError,
    estimate_losses,
)
from taskptq.analysis.sensitivity.measured import measure_losses
from taskptq.analysis.sensitivity.points import head_batches
from taskptq.core import AffineQuantizer
from taskptq.core.distributed import gathered
from taskptq.core.setting_error import refuse
from taskptq.core.switches import quantizers
from taskptq.engine.precision_problem import NOT_MEASURABLE, Calibrated
from taskptq.engine.quantization_report import structure_of
from taskptq.engine.recipe import Recipe
from taskptq.export.checkpoint import pack_model
from taskptq.export.container import to_file
from taskptq.methods.l2_compression import Allocation, allocate, rate_curve
from taskptq.methods.l2_compression.curves import code_prices
from taskptq.modules.base import quant_modules
from taskptq.prepare.size import FLOAT_BYTES
from taskptq.reconstruction.freeze import freeze

__all__ = ['fit_size', 'num_values', 'trim_floats']

logger = logging.getLogger('taskptq')

# Images for losses that are measured one at a time.
MEASURED_IMAGES = 4
# Meta and what a model's weights take beyond the estimate: rounding that
# makes up for errors spreads the codes.
SPARE_BYTES, SPARE_SHARE = 1500, 0.01
# Significant bits of what stays float, as half precision has.
FLOAT_BITS = 11

Quantizers = dict[str, tuple[AffineQuantizer, Tensor]]


def num_values(model: nn.Module) -> int:
    """Return how many parameters and buffers a float model has."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() for tensor in tensors)


def fit_size(
    calibrated: Calibrated, *, recipe: Recipe, float_values: int
) -> dict[str, Any]:
    """Choose steps as the recipe's ``qconfig.size`` says, in place.

    Args:
        calibrated: Model and data.
        recipe: The recipe; without a size nothing happens.
        float_values: Parameters and buffers of the float model.

    Returns:
        The report under ``size``, plain types; empty without a size.

    Raises:
        SettingError: If the file cannot be that small.
    """
    config = recipe.qconfig.size
    if config is None:
        return {}
    model = calibrated.model
    weights = _weights(model)
    gains = _gains(calibrated, weights, recipe=recipe)
    curves = {
        name: rate_curve(
            quantizer.masked(weight),
            bounds=(quantizer.quant_min, quantizer.quant_max),
        )
        for name, (quantizer, weight) in weights.items()
    }
    limit = config.limit(float_values)
    fixed = _fixed_bytes(calibrated, recipe)
    budget = 8 * (limit - fixed - SPARE_BYTES) * (1 - SPARE_SHARE)
    try:
        found = allocate(curves, gains=gains, budget=budget)
    except ValueError as error:
        raise refuse(
            'qconfig.size',
            limit,
            f'{fixed:,} bytes are not weights, and {error}',
        ) from error
    for name, (quantizer, weight) in weights.items():
        quantizer.prices = code_prices(
            quantizer.masked(weight),
            found.steps[name],
            bounds=curves[name].bounds,
        )
        # The estimate counts the coder's table as well.
        quantizer.max_bits = found.bits[name]
        quantizer.set_scale(
            torch.full_like(quantizer.scale, found.steps[name])
        )
    return {
        'size': {
            'limit_bytes': limit,
            'float_bytes': FLOAT_BYTES * float_values,
            'fixed_bytes': fixed,
            'estimated_loss': found.loss,
            'layers': _layers(weights, found, gains),
        }
    }


@torch.no_grad()
def trim_floats(model: nn.Module, *, recipe: Recipe) -> None:
    """Round what stays float to half precision's 11 bits, with a size.

    Its range stays that of float32, so nothing overflows; the two low bytes
    of each value then shrink to little.

    Args:
        model: Reconstructed model, not frozen.
        recipe: The recipe; without a size nothing happens.
    """
    if recipe.qconfig.size is None:
        return
    coded = set()
    for _, module in quant_modules(model):
        for parameter, _ in module.active_slots():
            coded.add(id(getattr(module, parameter)))
        for parameter, bias in module.corrected_biases.items():
            module.set_bias(parameter, rounded(bias))
    points = {id(p) for _, q in quantizers(model) for p in q.parameters()}
    for value in model.parameters():
        if id(value) not in coded | points and value.is_floating_point():
            value.copy_(rounded(value))


def rounded(value: Tensor, *, bits: int = FLOAT_BITS) -> Tensor:
    """Round to so many significant bits, of any magnitude.

    >>> rounded(torch.tensor([1.0, 1.0001, -3.1415926]))
    tensor([ 1.0000,  1.0000, -3.1406])
    """
    fraction, exponent = torch.frexp(value)
    return torch.ldexp((fraction * 2**bits).round(), exponent - bits)


def _weights(model: nn.Module) -> Quantizers:
    """Return the calibrated quantizer of each weight; shared ones once."""
    found: Quantizers = {}
    seen: set[int] = set()
    for name, module in quant_modules(model):
        for parameter, quantizer_name in module.active_slots():
            quantizer = module.weight_quantizer_of(parameter)
            weight = getattr(module, parameter)
            if quantizer is None or not quantizer.calibrated:
                continue
            full = f'{name}.{quantizer_name}'.lstrip('.')
            if quantizer.scale.numel() > 1 or not quantizer.spec.symmetric:
                raise refuse(
                    'qconfig.size',
                    full,
                    'weights need one symmetric grid per tensor: set '
                    'weight=dict(per_channel=False, symmetric=True)',
                )
            if id(quantizer) not in seen:
                seen.add(id(quantizer))
                found[full] = (quantizer, weight.detach())
    return found


def _gains(
    calibrated: Calibrated, weights: Quantizers, *, recipe: Recipe
) -> dict[str, float]:
    """Return the output loss of one unit of squared error of each weight."""
    config = recipe.qconfig.size
    assert config is not None
    few = head_batches(calibrated.batches, num_images=config.num_images)
    bits = sorted({q.spec.num_bits for q, _ in weights.values()})
    settings: dict[str, Any] = {
        'forward': calibrated.forward,
        'adapter': calibrated.adapter,
        'candidates': bits or (8,),
    }
    try:
        try:
            found = estimate_losses(
                calibrated.model, few, seed=recipe.seed, **settings
            )
        except NotDifferentiableError as error:
            logger.warning('Tensors are measured one at a time: %s', error)
            found = measure_losses(
                calibrated.model,
                few,
                num_images=MEASURED_IMAGES,
                **settings,
            )
    except NOT_MEASURABLE as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        logger.warning(
            'All weights count by their own size, since the outputs cannot '
            'be compared: %s',
            reason,
        )
        return {
            name: 1 / max(float(weight.square().mean()), 1e-30)
            for name, (_, weight) in weights.items()
        }
    losses = {
        point.name: point.losses.get(str(point.num_bits), 0.0)
        for point in found.points
    }
    known = {
        name: losses[name] / max(_own_error(quantizer, weight), 1e-30)
        for name, (quantizer, weight) in weights.items()
        if name in losses
    }
    shards = gathered(known)
    mean = {
        name: sum(shard.get(name, 0.0) for shard in shards) / len(shards)
        for name in known
    }
    # Weights that no gradient reaches matter as little as any.
    least = min((value for value in mean.values() if value > 0), default=1.0)
    return {name: max(mean.get(name, least), least) for name in weights}


@torch.no_grad()
def _own_error(quantizer: AffineQuantizer, weight: Tensor) -> float:
    """Return the squared error of the calibrated grid."""
    return float((quantizer.fake_quantize(weight) - weight).square().sum())


def _fixed_bytes(calibrated: Calibrated, recipe: Recipe) -> int:
    """Return what a file takes besides its weights' codes and tables."""
    model = copy.deepcopy(calibrated.model)
    _spoil_biases(model, recipe)
    trim_floats(model, recipe=recipe)
    freeze(model)
    payload = pack_model(
        model,
        recipe=recipe.to_dict(),
        meta={},
        structure=structure_of(calibrated.swapped),
    )
    config = recipe.qconfig.size
    assert config is not None
    bare = {**payload, 'weights': {}}
    buffer = io.BytesIO()
    stored = to_file(bare, codec=config.codec)
    torch.save(stored, buffer)
    names = [
        str([name, entry['shape']])
        for name, entry in payload['weights'].items()
    ]
    # Names and shapes of weights shrink to a fifth.
    return buffer.tell() + len(''.join(names)) // 5


@torch.no_grad()
def _spoil_biases(model: nn.Module, recipe: Recipe) -> None:
    """Give biases values that code as badly as those of a reconstruction.

    Those of the float model may be zeros, or have been stored in few bits.
    """
    if recipe.reconstruction is None:
        return
    generator = torch.Generator().manual_seed(0)
    for _, module in quant_modules(model):
        for parameter, _ in module.active_slots():
            bias = module.bias_of(parameter)
            if bias is None:
                continue
            noise = torch.randn(bias.shape, generator=generator).to(bias)
            size = bias.square().mean().sqrt().clamp(min=1e-3)
            module.set_bias(parameter, bias + 0.05 * size * noise)


def _layers(
    weights: Quantizers, found: Allocation, gains: dict[str, float]
) -> dict[str, Any]:
    return {
        name: {
            'step': found.steps[name],
            'bits': found.bits[name] / max(1, weight.numel()),
            'weights': weight.numel(),
            'gain': gains[name],
        }
        for name, (_, weight) in weights.items()
    }
