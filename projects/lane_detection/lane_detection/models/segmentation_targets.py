"""Draw lanes into masks as targets of segmentation heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from ..geometry import input_lanes

__all__ = ['IGNORED', 'draw_lanes', 'segmentation_targets']

# Pixels of lanes without a known slot.
IGNORED = 255
# Fractional bits of drawn coordinates.
_SHIFT = 4


def draw_lanes(
    lanes: Sequence[np.ndarray],
    *,
    classes: Sequence[int],
    size: tuple[int, int],
    width: int,
) -> np.ndarray:
    """Return a mask, (H, W), uint8, with 0 where there is no lane.

    Args:
        lanes: (n, 2) each, x and y in pixels of the input.
        classes: Value of each lane in the mask.
        size: (H, W).
        width: Line width in pixels.
    """
    mask = np.zeros(size, dtype=np.uint8)
    # Ignored lanes are drawn first, so that known lanes cover them.
    order = sorted(range(len(lanes)), key=lambda i: classes[i] != IGNORED)
    for i in order:
        if len(lanes[i]) < 2:
            continue
        # Points far outside would overflow cv2's fixed point.
        points = np.clip(np.asarray(lanes[i], dtype=np.float64), -1e5, 1e5)
        # cv2 counts from the center of the first pixel.
        fixed = np.round((points - 0.5) * 2**_SHIFT).astype(np.int32)
        cv2.polylines(
            mask,
            [fixed.reshape(-1, 1, 2)],
            isClosed=False,
            color=int(classes[i]),
            thickness=width,
            lineType=cv2.LINE_8,
            shift=_SHIFT,
        )
    return mask


def segmentation_targets(
    data_samples: Sequence[Any], *, num_slots: int, lane_width: float
) -> tuple[Tensor, Tensor]:
    """Return the targets of a segmentation head.

    Args:
        data_samples: LaneDataSample of each image, all of one input size.
        num_slots: Lanes of other slots are ignored.
        lane_width: Width of the lanes in pixels of the original image.

    Returns:
        Masks, (B, H, W) int64, of 0 (background), 1 to ``num_slots``, or
        ``IGNORED``; and existence, (B, num_slots) of 0 or 1: whether any
        pixel of the slot was drawn.

    Raises:
        ValueError: If the lanes of an image have no slots.
    """
    masks = []
    exist = torch.zeros(len(data_samples), num_slots)
    for i, sample in enumerate(data_samples):
        lanes = [np.asarray(lane) for lane in input_lanes(sample)]
        slots = getattr(sample.gt_lanes, 'slots', None)
        if slots is None:
            raise ValueError(
                'gt_lanes of a sample has no slots, which segmentation heads '
                'need for training: let the pipeline pack them'
            )
        known = [0 <= int(slot) < num_slots for slot in slots]
        classes = [
            int(slot) + 1 if is_known else IGNORED
            for slot, is_known in zip(slots, known, strict=True)
        ]
        height, width = sample.metainfo['img_shape'][:2]
        left, _, right, _ = sample.metainfo['crop']
        mask = draw_lanes(
            lanes,
            classes=classes,
            size=(height, width),
            width=max(1, round(lane_width * width / (right - left))),
        )
        masks.append(torch.from_numpy(mask).long())
        drawn = [value for value in np.unique(mask) if 0 < value <= num_slots]
        exist[i, [int(value) - 1 for value in drawn]] = 1
    return torch.stack(masks), exist
