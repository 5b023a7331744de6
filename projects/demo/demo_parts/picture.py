"""Boxes of several models on the same images, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from demo_parts.shapes import CLASSES
from taskptq.apis import build_model, load_config, load_quantized
from taskptq.engine.calibration_data import EvaluationSource
from taskptq.engine.checkpoint_file import load_float_weights, read_checkpoint

matplotlib.use('Agg')
from matplotlib import pyplot
from matplotlib.patches import Patch, Rectangle

COLORS = {'bolt': '#ff3b5c', 'nut': '#3bb8ff', 'washer': '#5cff8a'}
# Boxes below this score are not drawn.
MIN_SCORE = 0.4


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """Boxes of one image.

    Args:
        corners: (N, 4), x1, y1, x2, y2 in pixels.
        labels: (N,), class indices.
    """

    corners: np.ndarray
    labels: np.ndarray


def load_float(config: Path, *, checkpoint: Path) -> nn.Module:
    """Build a config's model with the weights of a float checkpoint."""
    model = build_model(config)
    load_float_weights(model, read_checkpoint(checkpoint), path=checkpoint)
    return model


def first_samples(config: Path, *, count: int) -> tuple[Any, list[Any]]:
    """Return the test set's collate function and its first samples."""
    loaded: Config = load_config(config)
    source = EvaluationSource.from_config(loaded.test_dataloader)
    return source.collate, [source.dataset[i] for i in range(count)]


@torch.no_grad()
def predict(
    model: nn.Module, samples: Sequence[Any], *, collate: Any
) -> list[Boxes]:
    """Run a detector; keeps what it is reasonably sure of."""
    results = []
    for output in model.test_step(collate(list(samples))):
        found = output.pred_instances
        found = found[found.scores >= MIN_SCORE]
        results.append(
            Boxes(
                corners=found.bboxes.cpu().numpy(),
                labels=found.labels.cpu().numpy(),
            )
        )
    return results


def ground_truth(samples: Sequence[Any]) -> list[Boxes]:
    """Return the annotated boxes of samples."""
    results = []
    for sample in samples:
        truth = sample['data_samples'].gt_instances
        results.append(
            Boxes(
                corners=truth.bboxes.tensor.numpy(),
                labels=truth.labels.numpy(),
            )
        )
    return results


def draw(
    samples: Sequence[Any], columns: dict[str, list[Boxes]], *, out: Path
) -> None:
    """Write the picture: a row for each image, a column for each model.

    Args:
        samples: Samples of the test set.
        columns: Title -> boxes of each sample.
        out: PNG file.
    """
    figure, axes = pyplot.subplots(
        len(samples),
        len(columns),
        squeeze=False,
        figsize=(3.2 * len(columns), 2.65 * len(samples)),
    )
    for row, sample in enumerate(samples):
        image = cv2.imread(sample['data_samples'].img_path)[..., ::-1]
        for column, (title, boxes) in enumerate(columns.items()):
            axis = axes[row][column]
            axis.imshow(image, interpolation='nearest')
            _draw_boxes(axis, boxes[row])
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=11)
    handles = [
        Patch(facecolor='none', edgecolor=COLORS[name], label=name)
        for name in CLASSES
    ]
    figure.legend(handles=handles, loc='lower center', ncols=len(handles))
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def _draw_boxes(axis: Any, boxes: Boxes) -> None:
    for (x1, y1, x2, y2), label in zip(
        boxes.corners, boxes.labels, strict=True
    ):
        color = COLORS[CLASSES[int(label)]]
        axis.add_patch(
            Rectangle(
                (x1, y1),
                x2 - x1,
                y2 - y1,
                fill=False,
                edgecolor=color,
                linewidth=1.6,
            )
        )


def draw_comparison(
    *,
    root: Path,
    float_config: str,
    checkpoint: str,
    quantized: dict[str, tuple[str, Path]],
    out: Path,
    count: int = 3,
) -> None:
    """Draw the annotated boxes, the float model's and the quantized ones'.

    Args:
        root: The repository.
        float_config: Config of the float model, relative to it.
        checkpoint: Float checkpoint, relative to it.
        quantized: Title -> (config, quantized file) of the other columns.
        out: PNG file.
        count: Images: the first ones of the test set.
    """
    collate, samples = first_samples(root / float_config, count=count)
    model = load_float(root / float_config, checkpoint=root / checkpoint)
    columns = {
        'annotated': ground_truth(samples),
        'float': predict(model, samples, collate=collate),
    }
    for title, (config, path) in quantized.items():
        model = load_quantized(root / config, path)
        columns[title] = predict(model, samples, collate=collate)
    draw(samples, columns, out=out)
