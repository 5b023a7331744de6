"""Quantize the model of a config, and write the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import build_calibration
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.engine.config_model import build_model, evaluation_source
from taskptq.engine.file_meta import file_meta
from taskptq.engine.fit import refuse_misfit
from taskptq.engine.pipeline import quantize_model
from taskptq.engine.recipe import Recipe
from taskptq.engine.refusals import (
    refuse_replaced_input,
    refuse_unwritable_file,
    refuse_unwritable_folder,
)

__all__ = ['quantize_config']


def quantize_config(
    config: Config,
    checkpoint: str | Path,
    *,
    parts: dict[str, Any],
    calibration: Mapping[str, Any],
    out: str | Path | None,
    work_dir: str | Path | None,
    device: str | torch.device,
    seed: int,
    resume: bool,
    trust_checkpoint: bool,
    meta: Mapping[str, Any],
) -> tuple[nn.Module, dict[str, Any]]:
    """Quantize the model of a config; see ``apis.quantize``.

    Args:
        config: Loaded config.
        checkpoint: Float checkpoint, path or URL.
        parts: Parts of the recipe.
        calibration: See ``CalibrationConfig``.
        out: As in ``apis.quantize``, like all that follow.
        work_dir: Folder of the reports.
        device: Where the model is quantized.
        seed: Seed of images and reconstruction.
        resume: Whether to go on with an interrupted run.
        trust_checkpoint: Whether to unpickle what is not plain.
        meta: What the file records besides data set and config.
    """
    folder = choose_work_dir(config, work_dir=work_dir, out=out)
    refuse_unwritable_folder(folder, name='work_dir')
    written = folder / 'quantized.pth' if out is None else Path(out)
    refuse_unwritable_file(written, name='out')
    refuse_replaced_input(written, name=f'out={written}', inputs=[checkpoint])
    images = CalibrationConfig.from_dict(calibration, seed=seed)
    made = Recipe.from_config(
        parts.pop('qconfig'), **parts, calibration=images.recipe(), seed=seed
    )
    path = local_file(checkpoint)
    content = read_checkpoint(path, trust_checkpoint=trust_checkpoint)
    model = build_model(config, device=device)
    load_float_weights(model, content, path=path)
    refuse_misfit(
        model, content, path=path, logger=MMLogger.get_current_instance()
    )
    source = evaluation_source(config)
    default = (config.get('train_dataloader') or {}).get('dataset')
    batches = build_calibration(images, source=source, default=default)
    model.dataset_meta = getattr(source.dataset, 'metainfo', {})
    found = file_meta(dataset_meta=model.dataset_meta, config=config.filename)
    report = quantize_model(
        model,
        batches,
        recipe=made,
        work_dir=folder,
        out=out,
        resume=resume,
        meta={**found, **meta},
    )
    return model, report


def choose_work_dir(
    config: Config, *, work_dir: str | Path | None, out: str | Path | None
) -> Path:
    """Return the folder for reports; see ``apis.quantize``."""
    if work_dir is not None:
        return Path(work_dir)
    if out is not None:
        return Path(out).parent
    name = Path(config.filename or 'model').stem
    return Path('work_dirs') / f'{name}_ptq'
