"""Prepare a model for quantization-aware training, without a runner.

BatchNorms are folded before training, as before calibration, so that the
weights that train are the ones that ship. A norm that cannot be folded keeps
its statistics for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import CalibrationReport, calibrate
from taskptq.core import Quantizer, enable
from taskptq.core.switches import quantizers
from taskptq.engine.pipeline import prepare_in_place, run_batch
from taskptq.modules.base import quant_modules
from taskptq.prepare import Decisions, QConfig, SwapReport

__all__ = [
    'Learned',
    'calibrate_rest',
    'frozen_norms',
    'keep_valid',
    'learned_parameters',
    'load_training_state',
    'move_weights',
    'prepare_training',
    'start_learning',
]

NORMS = (nn.modules.batchnorm._BatchNorm,)
MAX_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Trainable parameter of a quantizer.

    Args:
        name: Qualified name.
        quantizer: Owner of the parameter.
        parameter: The parameter.
    """

    name: str
    quantizer: Quantizer
    parameter: nn.Parameter

    @property
    def kind(self) -> str:
        """Last part of the name: scale, offset, coefficients, gamma, beta."""
        return self.name.rpartition('.')[2]

    def magnitude(self) -> float:
        """Return the unit of relative steps.

        An offset counts codes and may be zero, so its unit is the length of
        the grid: a step then moves an end of the range about as far as the
        same step of the scale.
        """
        if self.kind == 'offset':
            return float(self.quantizer.quant_max - self.quantizer.quant_min)
        return self.quantizer.magnitude_of(self.parameter)


def learned_parameters(model: nn.Module) -> list[Learned]:
    """List the trainable parameters of a model's calibrated quantizers.

    Args:
        model: Prepared model.
    """
    found = []
    for name, quantizer in quantizers(model):
        names = {id(p): n for n, p in quantizer.named_parameters()}
        found += [
            Learned(
                name=f'{name}.{names[id(parameter)]}',
                quantizer=quantizer,
                parameter=parameter,
            )
            for parameter in quantizer.learnable()
        ]
    return found


def prepare_training(
    model: nn.Module,
    qconfig: QConfig,
    *,
    batch: Any = None,
    decisions: Decisions | None = None,
) -> SwapReport:
    """Fold and swap a float model in place, for training.

    A folded norm leaves a bias, which trains if its convolution does.

    Args:
        model: Float model.
        qconfig: Recipe of the quantizers.
        batch: Batch on which each fold and swap is verified; see ``prepare``.
        decisions: Recorded decisions to replay instead, without data.

    Returns:
        What happened to each layer.

    Raises:
        ValueError: See ``taskptq.prepare.prepare``.
    """
    model.eval()
    # Kept alive until the end, so that ids stay unique.
    before = list(model.parameters())
    known = {id(parameter) for parameter in before}
    report = prepare_in_place(model, qconfig, batch=batch, decisions=decisions)
    for module in model.modules():
        bias = module._parameters.get('bias')
        weight = module._parameters.get('weight')
        if bias is not None and weight is not None and id(bias) not in known:
            bias.requires_grad_(weight.requires_grad)
    return report


def calibrate_rest(
    model: nn.Module, batches: Sequence[Any], *, unreached: str = 'error'
) -> CalibrationReport:
    """Calibrate the quantizers that have no range yet.

    Quantizers trained by an earlier stage are on meanwhile, so that the
    others see the inputs of training.

    Args:
        model: Prepared model.
        batches: Collated calibration batches.
        unreached: See ``calibrate``.
    """
    trained = [q for _, q in quantizers(model) if q.calibrated]

    def forward(module: nn.Module, batch: Any) -> Any:
        with _enabled(trained):
            return run_batch(module, batch)

    return calibrate(model, batches, forward=forward, unreached=unreached)


@contextmanager
def _enabled(found: Sequence[Quantizer]) -> Iterator[None]:
    before = [quantizer.enabled for quantizer in found]
    try:
        for quantizer in found:
            quantizer.enabled = True
        yield
    finally:
        for quantizer, was_enabled in zip(found, before, strict=True):
            quantizer.enabled = was_enabled


def start_learning(model: nn.Module) -> list[Learned]:
    """Turn the quantizers on and make their parameters trainable.

    Returns:
        The quantizers' trainable parameters.
    """
    enable(model)
    learned = learned_parameters(model)
    for item in learned:
        item.parameter.requires_grad_(True)
    return learned


def frozen_norms(model: nn.Module) -> list[nn.Module]:
    """List the BatchNorms that could not be folded."""
    return [module for module in model.modules() if isinstance(module, NORMS)]


@torch.no_grad()
def keep_valid(learned: Sequence[Learned]) -> None:
    """Clamp parameters to valid values after an optimizer step.

    Args:
        learned: Trainable parameters; scales are kept positive, offsets
            inside their grids, coefficients of levels as their kind has it.
    """
    for item in learned:
        if item.kind == 'scale':
            item.parameter.clamp_(min=1e-8)
        elif item.kind == 'offset':
            item.parameter.clamp_(
                item.quantizer.quant_min, item.quantizer.quant_max
            )
        elif item.kind == 'coefficients':
            item.quantizer.settle()


@torch.no_grad()
def move_weights(model: nn.Module) -> None:
    """Let quantizers move their weights after an optimizer step.

    Args:
        model: Prepared model in training.
    """
    for _, module in quant_modules(model):
        for parameter, _ in module.active_slots():
            weight = getattr(module, parameter)
            quantizer = module.weight_quantizer_of(parameter)
            moved = None if quantizer is None else quantizer.after_step(weight)
            if moved is not None:
                weight.copy_(moved)


def load_training_state(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> None:
    """Load the weights of a training checkpoint into a prepared model.

    Quantizers without a range in the checkpoint stay uncalibrated.

    Args:
        model: Prepared model.
        weights: Tensors of a model prepared in the same way.

    Raises:
        ValueError: If they do not fit, a quantizer had other bits, or a
            number is impossible.
    """
    refuse_bad_numbers(model, weights)
    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(
            f'the training checkpoint does not fit {type(model).__name__}: '
            f'{"; ".join(reasons[:MAX_NAMED])} ({len(reasons)} in all); use '
            'the config it was trained with'
        ) from error
    idle = tuple(
        f'{name}.'
        for name, quantizer in quantizers(model)
        if not quantizer.calibrated
    )
    misfits = [
        f'it lacks {key}'
        for key in found.missing_keys
        if not key.startswith(idle)
    ]
    misfits += [
        f'the model has no {key}'
        for key in found.unexpected_keys
        if weights[key].numel()
    ]
    if misfits:
        raise ValueError(
            f'the training checkpoint does not fit {type(model).__name__}: '
            f'{"; ".join(misfits[:MAX_NAMED])} ({len(misfits)} in all); use '
            'the config and the bits it was trained with'
        )


def refuse_bad_numbers(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> None:
    """Check every number of a training checkpoint before it is loaded.

    Args:
        model: Prepared model.
        weights: Tensors of the checkpoint.

    Raises:
        ValueError: If a number is impossible; names the first such tensor.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(
                f'the training checkpoint has NaN or infinity in {name}: use '
                'an earlier checkpoint'
            )
    for name, quantizer in quantizers(model):
        problem = grid_problem(quantizer, weights, prefix=f'{name}.')
        if problem is not None:
            raise ValueError(
                f'the training checkpoint does not fit: it has '
                f'{name}.{problem}; use the config and the bits it was '
                'trained with, or another checkpoint'
            )


def grid_problem(
    quantizer: Quantizer, weights: Mapping[str, Tensor], *, prefix: str
) -> str | None:
    """Return the first impossible number in one quantizer's state.

    Args:
        quantizer: Quantizer of the model, with the recipe's spec.
        weights: Tensors of the checkpoint.
        prefix: The quantizer's name and a dot.

    Returns:
        Name, value and what is allowed; None if the state is valid or has
        no range yet.
    """
    grid = weights.get(f'{prefix}grid')
    if grid is None or not grid.numel():
        return None
    if grid.dtype != torch.int32 or grid.shape != (2,):
        return f'grid of {grid.dtype} {list(grid.shape)}, not two int32'
    low, high = grid.tolist()
    if (low, high) not in quantizer.legal_grids():
        return (
            f'grid={[low, high]}, {high - low + 1} levels instead of '
            f'{levels_of(quantizer)} in qconfig'
        )
    for part in ('scale', 'gain'):
        value = weights.get(f'{prefix}{part}')
        if value is not None and not (
            value.numel() and value.ndim == 1 and bool((value > 0).all())
        ):
            return f'{part} that is empty or not positive'
    for part in ('zero_point', 'offset'):
        value = weights.get(f'{prefix}{part}')
        if value is not None and not (
            value.numel()
            and value.ndim == 1
            and bool(((value >= low) & (value <= high)).all())
        ):
            return f'{part} outside the grid {low} to {high}'
    fields = {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }
    fault = next(quantizer.state_faults(fields), None)
    return None if fault is None else f'state, which {fault}'


def levels_of(quantizer: Quantizer) -> int:
    """Return the number of codes of a quantizer's grid."""
    low, high = quantizer.legal_grids()[0]
    return high - low + 1
