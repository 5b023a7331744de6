"""Images, true boxes and predicted boxes, for pictures of detectors."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.patches import Rectangle
from torch import Tensor, nn


def chosen_batches(dataset: Any, *, count: int) -> list[dict[str, Any]]:
    """Return batches of one image, evenly spaced over a data set.

    Args:
        dataset: Evaluated data set.
        count: Number of images.

    Raises:
        ValueError: If ``count`` is 0 or exceeds the data set.
    """
    total = len(dataset)
    if not 1 <= count <= total:
        raise ValueError(f'--images {count}: give 1 to {total}')
    indices = [(2 * i + 1) * total // (2 * count) for i in range(count)]
    return [
        {'inputs': [one['inputs']], 'data_samples': [one['data_samples']]}
        for one in (dataset[index] for index in indices)
    ]


def picture_of(batch: dict[str, Any]) -> tuple[Any, Tensor, Tensor]:
    """Return the image at its original size (RGB), its boxes and labels.

    Args:
        batch: Batch of one image, with annotations at its original size.
    """
    import mmcv

    sample = batch['data_samples'][0]
    boxes = sample.gt_instances.bboxes
    return (
        mmcv.imread(sample.img_path, channel_order='rgb'),
        getattr(boxes, 'tensor', boxes),
        sample.gt_instances.labels,
    )


@torch.no_grad()
def predict(
    model: nn.Module, batch: dict[str, Any], *, score: float
) -> tuple[Tensor, Tensor]:
    """Return the confident boxes of an image and their labels.

    Args:
        model: Detector.
        batch: Batch of one image.
        score: Confidence that must be exceeded.

    Returns:
        (N, 4) in pixels of the original image, and (N,).
    """
    found = model.test_step(
        {
            'inputs': list(batch['inputs']),
            'data_samples': [one.clone() for one in batch['data_samples']],
        }
    )[0].pred_instances
    kept = found.scores > score
    return found.bboxes[kept].cpu(), found.labels[kept].cpu()


def outline(
    axes: Any, box: Tensor, *, color: Any, corner: tuple[int, int] = (0, 0)
) -> None:
    """Draw one box of an image.

    Args:
        axes: matplotlib axes.
        box: x1, y1, x2, y2 in pixels of the image.
        color: matplotlib color.
        corner: Left and top of the drawn part of the image.
    """
    left, top, right, bottom = (float(value) for value in box)
    axes.add_patch(
        Rectangle(
            (left - corner[0] - 0.5, top - corner[1] - 0.5),
            right - left,
            bottom - top,
            fill=False,
            edgecolor=color,
            linewidth=0.9,
        )
    )
