"""Seeded samples and tiny models for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor

from .geometry import to_input
from .structures import LaneDataSample

__all__ = [
    'ROAD',
    'lane_sample',
    'road_lanes',
    'tiny_backbone',
    'tiny_detector',
    'tiny_image',
]

# CULane's frame: size of the original, and the rows that a model sees.
ROAD: dict[str, Any] = {
    'ori_shape': (590, 1640),
    'crop': (0.0, 250.0, 1640.0, 590.0),
}


def road_lanes(
    *,
    bottoms: Sequence[float] = (250, 640, 1020, 1400),
    bend: float = 60.0,
    top: float = 300.0,
) -> list[np.ndarray]:
    """Return lanes that meet at a vanishing point, in pixels of CULane.

    Args:
        bottoms: x of each lane at row 590.
        bend: Pixels by which all lanes curve in the middle.
        top: Row where they end.

    Returns:
        (n, 2) float32 arrays from the bottom upwards, a point each 10 rows.
    """
    y = np.arange(590.0, top - 1, -10)
    depth = (y - 260) / 330
    return [
        np.stack(
            [820 + (bottom - 820) * depth + 4 * bend * depth * (1 - depth), y],
            axis=1,
        ).astype(np.float32)
        for bottom in bottoms
    ]


def lane_sample(
    lanes: Sequence[np.ndarray], *, img_shape: tuple[int, int]
) -> LaneDataSample:
    """Return a data sample of CULane's frame.

    Args:
        lanes: (n, 2) arrays in original pixels.
        img_shape: (h, w) of the input.
    """
    slots = torch.full((len(lanes),), -1)
    sample = LaneDataSample(
        metainfo=dict(ROAD, img_shape=img_shape, lane_frame='original')
    )
    sample.gt_lanes = InstanceData(points=list(lanes), slots=slots)
    return sample


def tiny_image(sample: LaneDataSample) -> Tensor:
    """Draw the lanes of a sample, (3, h, w), normalized."""
    height, width = sample.metainfo['img_shape']
    image = np.zeros((height, width), np.uint8)
    for lane in sample.gt_lanes.points:
        points = to_input(lane, sample.metainfo).round().astype(np.int32)
        cv2.polylines(image, [points], False, 1, thickness=3)
    noise = torch.randn(
        3, height, width, generator=torch.Generator().manual_seed(0)
    )
    return torch.from_numpy(image).float() * 2 - 0.5 + noise * 0.05


def tiny_backbone(
    *, num_stages: int = 4, out_indices: Sequence[int] = (1, 2, 3)
) -> dict[str, Any]:
    """Return the config of a ResNet-18 with an eighth of its width."""
    return dict(
        type='ResNet',
        depth=18,
        base_channels=8,
        num_stages=num_stages,
        strides=(1, 2, 2, 2)[:num_stages],
        dilations=(1,) * num_stages,
        out_indices=tuple(out_indices),
        norm_eval=False,
        style='pytorch',
    )


def tiny_detector(head: dict[str, Any], **kwargs: Any) -> Any:
    """Build a LaneDetector with initialized weights, in training mode."""
    config = dict(
        type='LaneDetector',
        head=head,
        data_preprocessor=dict(type='LaneDataPreprocessor'),
        **kwargs,
    )
    model = MODELS.build(config)
    model.init_weights()
    return model
