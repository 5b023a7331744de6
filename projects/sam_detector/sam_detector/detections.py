"""Cached detections, and predictions for images without any."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.structures import InstanceData

__all__ = ['Detections', 'image_key', 'no_instances']


class Detections(dict[tuple[Any, ...], InstanceData]):
    """Detections by image; copies of a model share one instance."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Detections:
        return self


def image_key(sample: Any) -> tuple[Any, ...] | None:
    """Return the key of the detector's input, None without a file."""
    path = sample.metainfo.get('img_path')
    if path is None:
        return None
    return (path, *sample.img_shape, sample.get('flip', False))


def no_instances(sample: Any, *, device: torch.device) -> InstanceData:
    """Return the prediction for an image without prompts."""
    height, width = sample.ori_shape[:2]
    empty = torch.zeros(0, device=device)
    return InstanceData(
        bboxes=empty.reshape(0, 4),
        labels=empty.long(),
        scores=empty,
        masks=torch.zeros(0, height, width, dtype=torch.bool, device=device),
        iou=empty,
    )
