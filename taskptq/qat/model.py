"""Quantization-aware training: what it does to a model, without a runner.

BatchNorms are folded before training, as they are before calibration: the
weights that train are then the ones that ship. A norm that cannot be folded
keeps its statistics, for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import CalibrationReport, calibrate
from taskptq.core import Quantizer, enable
from taskptq.core.switches import quantizers
from taskptq.engine.pipeline import prepare_in_place, run_batch
from taskptq.prepare import Decisions, QConfig, SwapReport

__all__ = [
    'STAGES',
    'Learned',
    'calibrate_rest',
    'frozen_norms',
    'keep_valid',
    'learned_parameters',
    'load_training_state',
    'prepare_training',
    'start_learning',
]

# Parts that a stage quantizes; None is the whole model (Q-DETR, section 5.1).
STAGES: dict[int, str | None] = {1: 'backbone', 2: None}
NORMS = (nn.modules.batchnorm._BatchNorm,)
MAX_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Learned:
    """One parameter of a quantizer that trains.

    Args:
        name: Qualified name.
        quantizer: Its owner.
        parameter: The parameter.
    """

    name: str
    quantizer: Quantizer
    parameter: nn.Parameter

    @property
    def kind(self) -> str:
        """Last part of the name: scale, offset, gamma or beta."""
        return self.name.rpartition('.')[2]

    def magnitude(self) -> float:
        """Return what relative steps are relative to.

        An offset counts codes and may be zero, so it is the length of the
        grid: a step then moves an end of the range about as far as the same
        step of the scale does.
        """
        if self.kind == 'offset':
            return float(self.quantizer.quant_max - self.quantizer.quant_min)
        return self.quantizer.magnitude_of(self.parameter)


def learned_parameters(model: nn.Module) -> list[Learned]:
    """List what the calibrated quantizers of a model can learn.

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
    stage: int,
    batch: Any = None,
    decisions: Decisions | None = None,
) -> SwapReport:
    """Fold and swap a float model that is to be trained, in place.

    A folded norm leaves a bias, which trains if its convolution does. In
    stage 1 the quantizers outside of the backbone are there, so that the
    next stage finds the same structure, but they are never calibrated and
    pass everything through.

    Args:
        model: Float model.
        qconfig: Recipe of the quantizers.
        stage: 1 or 2.
        batch: What each fold and swap is compared on; see ``prepare``.
        decisions: What to repeat instead, without data.

    Returns:
        The fate of each layer in this stage.

    Raises:
        ValueError: If the model has no backbone to begin with, or see
            ``taskptq.prepare.prepare``.
    """
    part = STAGES[stage]
    if part is not None and not hasattr(model, part):
        raise ValueError(
            f'stage={stage} quantizes model.{part} alone, and '
            f'{type(model).__name__} has none: train with stage=2'
        )
    model.eval()
    # Held until the end: the ids of what is alive are unique.
    before = list(model.parameters())
    known = {id(parameter) for parameter in before}
    report = prepare_in_place(model, qconfig, batch=batch, decisions=decisions)
    for module in model.modules():
        bias = module._parameters.get('bias')
        weight = module._parameters.get('weight')
        if bias is not None and weight is not None and id(bias) not in known:
            bias.requires_grad_(weight.requires_grad)
    if part is not None:
        _leave_float(model, part)
        report.rows = [
            row
            if _is_in(row.name, part) or row.status == 'float'
            else replace(
                row,
                status='float',
                weight_bits=None,
                activation_bits=None,
                attention_bits=None,
                softmax_bits=None,
                reason=f'stage {stage} quantizes the {part} alone',
            )
            for row in report.rows
        ]
    return report


def _is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f'{part}.')


def _leave_float(model: nn.Module, part: str) -> None:
    """Take the observers away that would calibrate another part."""
    for name, quantizer in quantizers(model):
        if not _is_in(name, part):
            quantizer.observer = None


def calibrate_rest(
    model: nn.Module, batches: Sequence[Any], *, unreached: str = 'error'
) -> CalibrationReport:
    """Calibrate what has no range yet, behind what has one.

    Args:
        model: Prepared model; quantizers that an earlier stage trained are
            on, so that the others see what they will see.
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
    """Turn the quantizers on for good, and let their parameters train.

    Returns:
        What trains besides the model's own parameters.
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
    """Bring what an optimizer step made impossible back to a valid grid.

    Args:
        learned: Parameters that train; scales stay positive, offsets inside
            their grids.
    """
    for item in learned:
        if item.kind == 'scale':
            item.parameter.clamp_(min=1e-8)
        elif item.kind == 'offset':
            item.parameter.clamp_(
                item.quantizer.quant_min, item.quantizer.quant_max
            )


def load_training_state(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> None:
    """Give a prepared model the weights of a training checkpoint.

    What has no range in the checkpoint stays to be calibrated.

    Args:
        model: Prepared model.
        weights: Tensors of a model that was prepared in the same way.

    Raises:
        ValueError: If they do not fit, a quantizer had other bits, or a
            number is one that no training leaves.
    """
    refuse_bad_numbers(model, weights)
    try:
        found = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        reasons = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(
            f'the training checkpoint does not fit {type(model).__name__}: '
            f'{"; ".join(reasons[:MAX_NAMED])} ({len(reasons)} in all); take '
            'the config that it was trained with'
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
            f'{"; ".join(misfits[:MAX_NAMED])} ({len(misfits)} in all); take '
            'the config and the bits that it was trained with'
        )


def refuse_bad_numbers(
    model: nn.Module, weights: Mapping[str, Tensor]
) -> None:
    """Check every number of a training checkpoint before it is loaded.

    Args:
        model: Prepared model.
        weights: Tensors of the checkpoint.

    Raises:
        ValueError: Naming the first tensor whose numbers cannot be.
    """
    for name, value in weights.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(
                f'the training checkpoint has NaN or infinity in {name}: take '
                'an earlier checkpoint'
            )
    for name, quantizer in quantizers(model):
        problem = grid_problem(quantizer, weights, prefix=f'{name}.')
        if problem is not None:
            raise ValueError(
                f'the training checkpoint does not fit: it has '
                f'{name}.{problem}; take the config and the bits that it was '
                'trained with, or another checkpoint'
            )


def grid_problem(
    quantizer: Quantizer, weights: Mapping[str, Tensor], *, prefix: str
) -> str | None:
    """Say which number of one quantizer's state cannot be.

    Args:
        quantizer: Quantizer of the model, with the recipe's spec.
        weights: Tensors of the checkpoint.
        prefix: The quantizer's name and a dot.

    Returns:
        Name, value and what is allowed; None if all is well, also where the
        checkpoint has no range yet.
    """
    grid = weights.get(f'{prefix}grid')
    if grid is None or not grid.numel():
        return None
    if grid.dtype != torch.int32 or grid.shape != (2,):
        return f'grid of {grid.dtype} {list(grid.shape)}, not two int32'
    low, high = grid.tolist()
    allowed = [quantizer.spec.bounds(signed=s) for s in (True, False)]
    if (low, high) not in allowed:
        return (
            f'grid={[low, high]}, {high - low + 1} levels there, '
            f'{quantizer.spec.num_levels} in qconfig'
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
            return f'{part} outside of the grid {low} to {high}'
    return None
