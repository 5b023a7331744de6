"""Training of SAM with prompts drawn from the annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .losses import box_weights, dice_loss, focal_loss, mask_iou
from .prompts import Prompts, inner_points, jitter_boxes
from .sam import PromptedSAM

__all__ = ['PromptTraining', 'prompt_losses']


@dataclass(frozen=True, kw_only=True)
class PromptTraining:
    """Settings of SAM's training.

    From SAM's paper: focal (x 20) + dice + squared error of the predicted
    IoU; boxes jittered by 10 %; three masks for a single point, of which the
    best is trained. Ours: the focal term is weighted around the box (see
    :func:`.losses.box_weights`).

    Args:
        max_prompts: Maximum number of prompted objects per view.
        box_ratio: Share of views prompted by boxes.
        point_ratio: Share of views prompted by a point; the rest use both.
        exact_ratio: Share of boxes left as annotated.
        jitter: See :func:`.prompts.jitter_boxes`.
        focal_weight: Weight of the focal term.
        dice_weight: Weight of the dice term.
        iou_weight: Weight of the predicted IoU's squared error.
        alpha: Foreground weight in the focal loss.
        gamma: Exponent of the focal loss.
        margin: Growth of the box in the focal term.
        outside: Weight of the pixels outside the grown box.

    Raises:
        ValueError: If a value is invalid.
    """

    max_prompts: int = 12
    box_ratio: float = 0.8
    point_ratio: float = 0.1
    exact_ratio: float = 0.5
    jitter: float = 0.1
    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    alpha: float = -1.0
    gamma: float = 2.0
    margin: float = 0.25
    outside: float = 0.25

    def __post_init__(self) -> None:
        if self.max_prompts < 1:
            raise ValueError(
                f'train_cfg.max_prompts={self.max_prompts} must be at least 1'
            )
        for name in ('box_ratio', 'point_ratio', 'exact_ratio'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f'train_cfg.{name}={getattr(self, name)} '
                    'must lie in [0, 1]'
                )
        if self.box_ratio + self.point_ratio > 1 + 1e-9:
            raise ValueError(
                f'train_cfg.box_ratio={self.box_ratio} and point_ratio='
                f'{self.point_ratio} must not exceed 1 together'
            )
        # Sides move by up to twice the jitter, and boxes must not flip.
        if not 0 <= self.jitter <= 0.25:
            raise ValueError(
                f'train_cfg.jitter={self.jitter} must lie in [0, 0.25]'
            )


def prompt_losses(
    sam: PromptedSAM,
    inputs: dict[str, Any],
    data_samples: Sequence[Any],
    *,
    cfg: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Return the losses of a batch of views.

    Args:
        sam: Model.
        inputs: ``inputs['sam']`` holds one (1, 3, S, S) view per image.
        data_samples: With ``gt_instances`` (bboxes (N, 4) in pixels of the
            view, masks (N, S / 2, S / 2)).
        cfg: Fields of :class:`PromptTraining`.

    Returns:
        ``loss_focal``, ``loss_dice`` and ``loss_iou``, weighted, means over
        the prompts of the batch, and ``miou`` of the masks; without any
        object three losses of zero.

    Raises:
        ValueError: If an image has several views.
    """
    settings = PromptTraining(**(cfg or {}))
    count = max(len(views) for views in inputs['sam'])
    if count > 1:
        raise ValueError(
            f'an image to train on has {count} views, but annotations belong '
            'to one: use ZoomCrop in the training pipeline, not SAMViews'
        )
    embeddings = sam.encode(torch.cat(list(inputs['sam'])))
    parts = []
    for index, sample in enumerate(data_samples):
        instances = sample.gt_instances
        if len(instances) == 0:
            continue
        parts.append(
            _view_losses(
                sam, embeddings[index : index + 1], instances, settings
            )
        )
    if not parts:
        nothing = embeddings.sum() * 0
        return {
            'loss_focal': nothing,
            'loss_dice': nothing,
            'loss_iou': nothing,
        }
    names = ('focal', 'dice', 'iou', 'miou')
    means = torch.cat(parts).mean(dim=0)  # over prompts
    losses = dict(zip(names, means, strict=True))
    return {
        'loss_focal': settings.focal_weight * losses['focal'],
        'loss_dice': settings.dice_weight * losses['dice'],
        'loss_iou': settings.iou_weight * losses['iou'],
        'miou': losses['miou'].detach(),
    }


def _view_losses(
    sam: PromptedSAM,
    embedding: Tensor,
    instances: Any,
    settings: PromptTraining,
) -> Tensor:
    """Return focal, dice, IoU error and IoU of the prompts, (P, 4)."""
    device = embedding.device
    chosen = torch.randperm(len(instances))[: settings.max_prompts]
    boxes = as_plain_boxes(instances.bboxes)[chosen].to(device)
    targets = _as_tensor(instances.masks)[chosen].to(device)  # P x S/2 x S/2
    prompts = _draw_prompts(boxes, targets, sam.image_size, settings)
    ambiguous = prompts.boxes is None
    logits, iou = sam.decode(embedding, prompts, multimask_output=ambiguous)
    size = targets.shape[-1]
    logits = functional.interpolate(
        logits, size=(size, size), mode='bilinear', align_corners=False
    )
    weights = box_weights(
        boxes * (size / sam.image_size),
        size=size,
        margin=settings.margin,
        outside=settings.outside,
    )
    per_mask = torch.stack(
        [
            _mask_terms(logits[:, m], iou[:, m], targets, weights, settings)
            for m in range(logits.shape[1])
        ]
    )  # M x P x 4
    total = (
        settings.focal_weight * per_mask[..., 0]
        + settings.dice_weight * per_mask[..., 1]
    )
    best = total.detach().argmin(dim=0)  # P
    return per_mask[best, torch.arange(len(best), device=device)]


def _mask_terms(
    logits: Tensor,
    iou: Tensor,
    targets: Tensor,
    weights: Tensor,
    settings: PromptTraining,
) -> Tensor:
    """Return focal, dice, IoU error and IoU of each mask, (P, 4)."""
    reached = mask_iou(logits > 0, targets > 0.5).to(logits.dtype)
    return torch.stack(
        [
            focal_loss(
                logits,
                targets,
                weights,
                alpha=settings.alpha,
                gamma=settings.gamma,
            ),
            dice_loss(logits, targets),
            (iou - reached) ** 2,
            reached,
        ],
        dim=1,
    )


def _draw_prompts(
    boxes: Tensor, targets: Tensor, image_size: int, settings: PromptTraining
) -> Prompts:
    """Draw the kind of prompt of a view, then the prompts."""
    kind = float(torch.rand(()))
    jittered = jitter_boxes(
        boxes, ratio=settings.jitter, image_size=image_size
    )
    exact = torch.rand(len(boxes), 1, device=boxes.device)
    prompted = torch.where(exact < settings.exact_ratio, boxes, jittered)
    if kind < settings.box_ratio:
        return Prompts(boxes=prompted)
    points = inner_points(targets, random=True)[:, None] * (
        image_size / targets.shape[-1]
    )
    labels = torch.ones(points.shape[:2], device=points.device)
    if kind < settings.box_ratio + settings.point_ratio:
        return Prompts(points=points, labels=labels)
    return Prompts(boxes=prompted, points=points, labels=labels)


def _as_tensor(masks: Any) -> Tensor:
    """Return mmdet masks or a tensor as float, (N, H, W)."""
    if isinstance(masks, Tensor):
        return masks.float()
    return torch.from_numpy(masks.to_ndarray()).float()


def as_plain_boxes(boxes: Any) -> Tensor:
    """Return mmdet boxes or a tensor as a tensor, (N, 4)."""
    return boxes if isinstance(boxes, Tensor) else boxes.tensor
