"""Masks of the float model and of quantized ones on the same images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from taskptq.engine.calibration_data import EvaluationSource
from taskptq.engine.checkpoint_file import read_checkpoint
from taskptq.engine.pipeline import (
    apply_rewrites,
    quantize_model,
)
from taskptq.engine.restore import restore_model

from .experiment import Experiment, evenly_spaced
from .metrics import annotated_masks, as_array, paired_iou
from .picture import draw_masks

__all__ = ['compare_masks']

PROMPTS = 'gt_box'
TILE_INCHES = 2.0


def quantized_copy(
    model: nn.Module,
    experiment: Experiment,
    row: str,
    *,
    seed: int,
    work_dir: Path,
    reuse: bool = False,
) -> nn.Module:
    """Quantize a copy of the float model like the table.

    Args:
        model: Float model.
        experiment: The table.
        row: ``<bits>_<method>``.
        seed: Seed of the row.
        work_dir: Folder of the quantized file.
        reuse: Use the existing file if it has the same recipe.
    """
    result = copy.deepcopy(model)
    recipe = experiment.recipe(row, seed=seed)
    out = work_dir / row / 'quantized.pth'
    if reuse and out.is_file():
        payload = read_checkpoint(out)
        if payload['recipe'] == recipe.to_dict():
            restore_model(payload, result)
            return result
    batches = experiment.batches(experiment.images(seed))
    quantize_model(
        result, batches, recipe=recipe, work_dir=out.parent, out=out
    )
    return result


@torch.no_grad()
def predict(
    model: nn.Module, source: EvaluationSource, indices: Sequence[int]
) -> list[Any]:
    """Return the data samples of images, each freshly read."""
    return [
        model.test_step(source.collate([source.dataset[index]]))[0]
        for index in indices
    ]


def masks_of(sample: Any) -> np.ndarray:
    """Return the masks for ground-truth boxes, (N, H, W), bool."""
    return as_array(sample.prompted[PROMPTS].masks).astype(bool)


def mean_iou(sample: Any) -> float:
    """Return the mean IoU over the objects of an image."""
    return float(paired_iou(masks_of(sample), annotated_masks(sample)).mean())


def compare_masks(
    experiment: Experiment,
    rows: Sequence[str],
    *,
    num_images: int,
    out: Path,
    work_dir: Path,
    seed: int = 0,
    device: str = 'cpu',
    reuse: bool = False,
) -> dict[str, list[float]]:
    """Draw annotated, float and quantized masks side by side.

    Prompts are ground-truth boxes. The images are evenly spaced over the data
    set rather than chosen by result.

    Args:
        experiment: The table.
        rows: ``<bits>_<method>`` of the quantized models.
        num_images: Number of images, one line each.
        out: PNG file.
        work_dir: Folder of the quantized files.
        seed: Seed of the rows.
        device: Device of the models.
        reuse: See :func:`quantized_copy`.

    Returns:
        The mean IoU of each image, by column.

    Raises:
        ValueError: If a row has no recipe, or there are fewer images.
    """
    for row in rows:
        experiment.settings(row)
    source = experiment.source()
    indices = evenly_spaced(len(source.dataset), count=num_images)
    model = experiment.float_model(device)
    reference = copy.deepcopy(model)
    if experiment.rewrites:
        images = experiment.batches(experiment.images(seed))
        apply_rewrites(reference, images, experiment.rewrites)
    columns = {'float': predict(reference, source, indices)}
    for row in rows:
        quantized = quantized_copy(
            model, experiment, row, seed=seed, work_dir=work_dir, reuse=reuse
        )
        columns[title(row)] = predict(quantized, source, indices)
    ious = {
        name: [mean_iou(sample) for sample in samples]
        for name, samples in columns.items()
    }
    draw(columns, ious, out=out)
    return ious


def title(row: str) -> str:
    """Return a column's title.

    >>> title('w4a4_ptq4sam-l')
    'W4A4 ptq4sam-l'
    """
    bits, _, method = row.partition('_')
    return f'{bits.upper()} {method}'


def draw(
    columns: dict[str, list[Any]], ious: dict[str, list[float]], *, out: Path
) -> None:
    """Write the picture, including the annotated masks."""
    samples = columns['float']
    truth = [annotated_masks(sample) for sample in samples]
    masks = {
        name: [masks_of(sample) for sample in found]
        for name, found in columns.items()
    }
    captions = {
        name: [f'mean IoU {value:.3f}' for value in values]
        for name, values in ious.items()
    }
    captions['annotated'] = [f'{len(found)} objects' for found in truth]
    images = [
        np.ascontiguousarray(cv2.imread(sample.img_path)[..., ::-1])
        for sample in samples
    ]
    draw_masks(
        images,
        {'annotated': truth, **masks},
        out,
        captions=captions,
        tile_inches=TILE_INCHES,
    )
