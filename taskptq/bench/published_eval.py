"""Evaluate like the published code of this field, to expose its faults.

The public code of QDrop's followers (PTQ4SAM, Lv et al., CVPR 2024, and
successors) has two faults at evaluation. The random drop stays on in the
quantizers of layer inputs, so half of their values are float; and only the
first layer of each unit is rounded hard, so the weights of the others are off
their integer grids. No integer runtime can compute such a model. It is made
only on request, cannot be frozen or packed, and its score is shown next to
the correct one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from torch import nn

from taskptq.core import LearnedRounding, enable
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.engine.pipeline import Ending, refuse_quantized, run_steps
from taskptq.engine.recipe import Recipe
from taskptq.modules.base import QuantModule
from taskptq.prepare.blocks import Unit

__all__ = [
    'SoftRoundings',
    'leave_as_published',
    'published_note',
    'quantize_as_published',
]

DROP_PROB = 0.5


class SoftRoundings:
    """Collect learned roundings while they are soft.

    Pass it to ``reconstruct`` as ``on_trained``. The first layer of each unit
    is skipped, since it is rounded hard.

    Attributes:
        num_units: Units with learned roundings.
        found: Layer name -> layer and its roundings.
    """

    def __init__(self) -> None:
        self.num_units = 0
        self.found: dict[
            str, tuple[QuantModule, dict[str, LearnedRounding]]
        ] = {}

    def __call__(self, unit: Unit) -> None:
        """Collect the roundings of a trained unit."""
        learned = [
            (name, module, module.roundings)
            for name, module in unit.layers()
            if module.roundings
        ]
        self.num_units += bool(learned)
        for name, module, roundings in learned[1:]:
            self.found[name] = module, roundings


def leave_as_published(
    model: nn.Module, soft: SoftRoundings
) -> dict[str, Any]:
    """Put a reconstructed model into the state that published code evaluates.

    Its outputs become random (torch's global generator), and ``freeze`` and
    ``pack_model`` refuse it.

    Args:
        model: Reconstructed with ``on_trained=soft``, not frozen.
        soft: The collected roundings.

    Returns:
        Names of the dropping quantizers and of the soft layers, and the share
        of the soft layers' weights that are off the grid by more than 0.01
        steps.

    Raises:
        ValueError: If no rounding was learned.
    """
    if not soft.num_units:
        raise ValueError(
            'published evaluation needs learned roundings, but there are '
            "none: give reconstruction=dict(rounding='adaround', "
            'skip_below=0.0)'
        )
    model.eval()
    enable(model)
    dropping = []
    for name, quantizer in quantizers(model):
        if quantizer.calibrated and not is_weight_quantizer(name):
            quantizer.settle()
            if name.rpartition('.')[2].endswith('input_quantizer'):
                quantizer.drop_prob = DROP_PROB
                dropping.append(name)
    for module, roundings in soft.found.values():
        module.attach_roundings(roundings)
    return {
        'drop_prob': DROP_PROB,
        'dropping': dropping,
        'soft_layers': list(soft.found),
        'off_grid': _share_off_grid(soft),
    }


@torch.no_grad()
def _share_off_grid(soft: SoftRoundings) -> float:
    off, total = 0, 0
    for _, roundings in soft.found.values():
        for rounding in roundings.values():
            steps = rounding() / rounding.scale
            off += int(((steps - steps.round()).abs() > 0.01).sum())
            total += steps.numel()
    return off / total if total else 0.0


def quantize_as_published(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    recipe: Recipe,
    work_dir: str | Path,
) -> dict[str, Any]:
    """Quantize a model in place the way published code evaluates it.

    ``quantize_model`` and the hooks never do this. Nothing is resumed, since
    saved units have no soft roundings.

    Args:
        model: Float model with its weights, not wrapped.
        batches: Collated calibration batches of this rank.
        recipe: How to quantize, with learned rounding.
        work_dir: Folder of ``published_eval_report.json``.

    Returns:
        The report, plain types; ``published_eval`` marks it.

    Raises:
        RuntimeError: If the model is already quantized.
        ValueError: If the recipe learns no rounding.
    """
    refuse_quantized(model)
    settings = recipe.reconstruction
    if settings is None or settings.get('rounding', 'adaround') != 'adaround':
        raise ValueError(
            'published evaluation needs learned roundings: give '
            "reconstruction=dict(rounding='adaround')"
        )
    work_dir = Path(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    soft = SoftRoundings()
    ending = Ending(
        on_trained=soft,
        finish=lambda model: {
            'published_eval': leave_as_published(model, soft)
        },
    )
    report, _ = run_steps(
        model,
        batches,
        recipe=recipe,
        work_dir=work_dir,
        resume=False,
        ending=ending,
    )
    if is_main_process():
        text = json.dumps(report, indent=1) + '\n'
        target = work_dir / 'published_eval_report.json'
        target.write_text(text, encoding='utf-8')
    return report


def published_note(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the note for a result that no quantized model can reproduce.

    Args:
        report: Report of the quantization.

    Returns:
        The entry ``note``; empty for ordinary quantizations.
    """
    found = report.get('published_eval')
    if found is None:
        return {}
    return {
        'note': f'{len(found["dropping"])} input quantizers drop at '
        f'random, {len(found["soft_layers"])} layers are rounded '
        f'softly ({found["off_grid"]:.1%} of their weights off '
        'the grid): no integer runtime can compute it'
    }
