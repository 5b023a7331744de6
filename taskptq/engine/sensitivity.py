"""Analyse which tensors of a model its quantization would hurt."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

from taskptq.analysis.sensitivity.record import SensitivityReport
from taskptq.core.setting_error import refuse
from taskptq.engine.builder import build_adapter
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import build_calibration
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.engine.config_model import (
    build_model,
    evaluation_source,
    load_config,
)
from taskptq.engine.contexts import seeded, shared_log
from taskptq.engine.fit import refuse_misfit
from taskptq.engine.in_memory import (
    Forward,
    call_model,
    check_takes,
    choose_adapter,
    keep_batches,
    refuse_half,
)
from taskptq.engine.pipeline import refuse_quantized, run_batch
from taskptq.engine.recipe import Recipe
from taskptq.engine.recipe_source import read_recipe
from taskptq.engine.refusals import refuse_unwritable_folder
from taskptq.engine.sensitivity_run import (
    SensitivitySettings,
    Subject,
    analyse,
    write_report,
)

__all__ = ['SensitivitySettings', 'sensitivity']


def sensitivity(
    config_or_model: Config | str | Path | nn.Module,
    checkpoint_or_batches: str | Path | Sequence[Any],
    *,
    recipe: Any = 'w8a8',
    num_images: int = 64,
    settings: SensitivitySettings | None = None,
    forward: Forward | None = None,
    out: str | Path | None = None,
    device: str | torch.device = 'cpu',
    trust_checkpoint: bool = False,
    allow_overlap: bool = False,
) -> SensitivityReport:
    """Analyse which tensors quantization hurts, and by how much.

        report = sensitivity('yolox.py', 'float.pth', recipe='w8a8')
        print(*report.sentences())

    Nothing is quantized for good: a model in memory is copied first.

    Args:
        config_or_model: Config of an mm model, or its path; or any model
            with float weights.
        checkpoint_or_batches: For a config the float checkpoint, for a model
            its batches; see ``quantize``.
        recipe: Sets the quantizers and the rewrites before them; what it
            reconstructs or chooses is left out.
        num_images: Calibration images of a config.
        settings: How to analyse.
        forward: With a model in memory, runs it on a batch.
        out: Folder of ``sensitivity.json`` and ``sensitivity.png``, and of
            the numbers of an interrupted run; None writes nothing.
        device: Where the model of a config runs.
        trust_checkpoint: Unpickle a checkpoint that is not plain.
        allow_overlap: Accept calibration images of the test split.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        NotDifferentiableError: If gradients are asked for and the model has
            none.
        ValueError: If a setting is impossible; see also ``quantize``.
    """
    chosen = settings or SensitivitySettings()
    if out is not None:
        refuse_unwritable_folder(out, name='out')
    if isinstance(config_or_model, nn.Module):
        if chosen.metric:
            raise refuse(
                'metric', True, 'it needs a config, which has the evaluator'
            )
        subject = _of_model(
            config_or_model, checkpoint_or_batches, recipe, forward, chosen
        )
    else:
        subject = _of_config(
            load_config(config_or_model),
            checkpoint_or_batches,
            recipe,
            images={
                'num_images': num_images,
                **({'allow_overlap': True} if allow_overlap else {}),
            },
            settings=chosen,
            device=device,
            trust_checkpoint=trust_checkpoint,
        )
    with seeded(chosen.seed), shared_log():
        report = analyse(
            subject, chosen, out=None if out is None else Path(out)
        )
    if out is not None:
        write_report(report, Path(out))
    return report


def _of_model(
    model: nn.Module,
    batches: Any,
    recipe: Any,
    forward: Forward | None,
    settings: SensitivitySettings,
) -> Subject:
    """Return a copy of a model in memory as the subject."""
    refuse_quantized(model)
    refuse_half(model)
    kept = keep_batches(batches)
    run = forward or call_model
    made = _recipe(recipe, seed=settings.seed, calibration={})
    copied = copy.deepcopy(model)
    # Some hosts return nothing from it.
    copied.eval()
    check_takes(copied, kept[0], run)
    return Subject(
        model=copied,
        batches=kept,
        recipe=made,
        forward=run,
        adapter=choose_adapter(copied, run, made),
    )


def _of_config(
    config: Config,
    checkpoint: str | Path,
    recipe: Any,
    *,
    images: Mapping[str, Any],
    settings: SensitivitySettings,
    device: str | torch.device,
    trust_checkpoint: bool,
) -> Subject:
    """Build the model and the data of a config."""
    chosen = CalibrationConfig.from_dict(images, seed=settings.seed)
    made = _recipe(recipe, seed=settings.seed, calibration=chosen.recipe())
    path = local_file(checkpoint)
    content = read_checkpoint(path, trust_checkpoint=trust_checkpoint)
    model = build_model(config, device=device)
    load_float_weights(model, content, path=path)
    refuse_misfit(
        model, content, path=path, logger=MMLogger.get_current_instance()
    )
    source = evaluation_source(config)
    default = (config.get('train_dataloader') or {}).get('dataset')
    return Subject(
        model=model,
        batches=build_calibration(chosen, source=source, default=default),
        recipe=made,
        forward=run_batch,
        adapter=build_adapter(model),
        config=config,
    )


def _recipe(
    recipe: Any, *, seed: int, calibration: Mapping[str, Any]
) -> Recipe:
    """Return the statistics part of a recipe."""
    parts = read_recipe(recipe)
    return Recipe.from_config(
        parts['qconfig'],
        rewrites=parts.get('rewrites'),
        calibration=calibration,
        seed=seed,
    )
