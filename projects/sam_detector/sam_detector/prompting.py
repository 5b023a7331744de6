"""Prompts of a SAM detector, in pixels of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .prompts import Prompts, inner_points
from .training import as_plain_boxes
from .views import View

__all__ = ['KINDS', 'Request', 'detector_request', 'ground_truth_request']

# Prompts are the detector's boxes, or boxes and points of the annotations.
KINDS = ('detector', 'gt_box', 'gt_point', 'gt_box_point')


@dataclass(frozen=True, kw_only=True)
class Request:
    """P prompts of one image, in pixels of the original image.

    Args:
        boxes: (P, 4), x1, y1, x2, y2 of the objects.
        labels: (P,), classes.
        scores: (P,), the detector's scores; None for annotations.
        points: (P, 2), x, y of a point in each object, or None.
        box_prompts: Whether the boxes are prompts.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    points: Tensor | None = None
    box_prompts: bool = True

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def extent(self) -> Tensor:
        """Return the known extent of each object as a box, (P, 4).

        A lone point does not show the size of its object.
        """
        if self.box_prompts or self.points is None:
            return self.boxes
        return self.points.repeat(1, 2)

    def in_view(self, view: View, index: Tensor) -> Prompts:
        """Return some of the prompts in pixels of a view.

        Args:
            view: The view.
            index: (Q,), indices of the prompts.
        """
        boxes = points = labels = None
        if self.box_prompts:
            boxes = view.boxes_to_view(self.boxes[index])
        if self.points is not None:
            points = view.to_view(self.points[index])[:, None]  # Q x 1 x 2
            labels = points.new_ones(points.shape[:2])
        return Prompts(boxes=boxes, points=points, labels=labels)


def detector_request(
    detections: Any, *, max_prompts: int | None, score_thr: float
) -> Request:
    """Prompt with a detector's boxes, best first.

    Args:
        detections: mmdet's InstanceData (bboxes, scores, labels).
        max_prompts: Maximum number of boxes per image; None for all.
        score_thr: Boxes with a lower score are dropped.
    """
    order = detections.scores.argsort(descending=True, stable=True)
    order = order[detections.scores[order] >= score_thr][:max_prompts]
    return Request(
        boxes=as_plain_boxes(detections.bboxes)[order].float(),
        labels=detections.labels[order],
        scores=detections.scores[order],
    )


def ground_truth_request(
    kind: str, instances: Any, *, device: torch.device
) -> Request:
    """Prompt with annotations.

    Args:
        kind: ``gt_box``, ``gt_point`` or ``gt_box_point``.
        instances: mmdet's InstanceData (bboxes, labels; masks for points),
            in pixels of the original image.
        device: Device of the prompts.

    Raises:
        ValueError: If points are requested, but there are no masks.
    """
    boxes = as_plain_boxes(instances.bboxes).to(device).float()
    points = None
    if kind != 'gt_box':
        if 'masks' not in instances:
            raise ValueError(
                f'prompts={kind!r} needs the masks of the annotations: set '
                'with_mask=True in LoadAnnotations of the test pipeline'
            )
        masks = torch.from_numpy(instances.masks.to_ndarray()).to(device)
        points = boxes.new_zeros(0, 2)
        if len(masks) > 0:
            points = inner_points(masks > 0, random=False)
    return Request(
        boxes=boxes,
        labels=instances.labels.to(device),
        points=points,
        box_prompts=kind != 'gt_point',
    )
