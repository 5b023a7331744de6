"""A quantization that ends as published code evaluates it, and no file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from torch import nn

from taskptq.engine.pipeline import Recipe, refuse_quantized, run_steps
from taskptq.methods.published_eval import SoftRoundings

__all__ = ['published_note', 'quantize_as_published']


def quantize_as_published(model: nn.Module, batches: Sequence[Any], *,
                          recipe: Recipe,
                          work_dir: str | Path) -> dict[str, Any]:
    """Quantize in place, without the steps that make it a quantized model.

    See :mod:`taskptq.methods.published_eval`. ``quantize_model`` and the
    hook never do this. It always starts anew: a saved unit has no soft
    rounding.

    Args:
        model: Float model with its weights, not wrapped.
        batches: Collated calibration batches of this rank.
        recipe: How to quantize, with learned rounding.
        work_dir: Folder of ``published_eval_report.json``.

    Returns:
        The report, plain types; ``published_eval`` marks it.

    Raises:
        RuntimeError: If the model is quantized already.
        ValueError: If the recipe learns no rounding.
    """
    refuse_quantized(model)
    settings = recipe.reconstruction
    if settings is None or settings.get('rounding', 'adaround') != 'adaround':
        raise ValueError(
            'published evaluation is of learned roundings: give '
            "reconstruction=dict(rounding='adaround')")
    work_dir = Path(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    report, _ = run_steps(
        model, batches, recipe=recipe, work_dir=work_dir, resume=False,
        soft=SoftRoundings())
    if is_main_process():
        text = json.dumps(report, indent=1) + '\n'
        target = work_dir / 'published_eval_report.json'
        target.write_text(text, encoding='utf-8')
    return report


def published_note(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the note of a result that is of no quantized model.

    Args:
        report: Report of the quantization.
    """
    found = report.get('published_eval')
    if found is None:
        return {}
    return {'note': f'{len(found["dropping"])} input quantizers drop at '
                    f'random, {len(found["soft_layers"])} layers are rounded '
                    f'softly ({found["off_grid"]:.1%} of their weights off '
                    'the grid): no integer runtime can compute it'}
