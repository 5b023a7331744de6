"""Mask losses of Segment Anything: focal, dice and predicted IoU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ['box_weights', 'dice_loss', 'focal_loss', 'mask_iou']


def box_weights(
    boxes: Tensor, *, size: int, margin: float, outside: float
) -> Tensor:
    """Weight the pixels around each object.

    Small objects fill a hundredth of a view, so their edges would hardly
    count in a mean over all pixels. Pixels in the box grown by ``margin``
    share the weight 1, the others share ``outside``.

    Args:
        boxes: (P, 4), x1, y1, x2, y2 in pixels of the mask.
        size: Side of the mask.
        margin: How far each edge moves out, relative to the box's side, or
            to 4 pixels if that is shorter.
        outside: Total weight of all pixels outside.

    Returns:
        (P, size, size) with the sum 1 + ``outside``; the grown box must
        contain a pixel's center and exclude another.
    """
    grow = margin * (boxes[:, 2:] - boxes[:, :2]).clamp(min=4)
    low, high = boxes[:, :2] - grow, boxes[:, 2:] + grow
    centers = torch.arange(size, device=boxes.device) + 0.5
    in_x = (centers > low[:, :1]) & (centers < high[:, :1])
    in_y = (centers > low[:, 1:]) & (centers < high[:, 1:])
    inside = (in_y[:, :, None] & in_x[:, None, :]).float()
    count = inside.sum(dim=(1, 2), keepdim=True)
    return inside / count.clamp(min=1) + outside * (1 - inside) / (
        size * size - count
    ).clamp(min=1)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Focal loss of each mask (Lin et al., ICCV 2017).

    Args:
        logits: (P, H, W).
        targets: (P, H, W) in [0, 1].
        weights: (P, H, W), see :func:`box_weights`.
        alpha: Weight of the foreground; negative for none.
        gamma: Exponent of (1 - p).

    Returns:
        (P,).
    """
    loss = functional.binary_cross_entropy_with_logits(
        logits, targets, reduction='none'
    )
    if gamma > 0:
        miss = (logits.sigmoid() - targets).abs()
        loss = loss * miss**gamma
    if alpha >= 0:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return (loss * weights).sum(dim=(1, 2))


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Dice loss of each mask (Milletari et al., 3DV 2016).

    Args:
        logits: (P, H, W).
        targets: (P, H, W) in [0, 1].

    Returns:
        (P,).
    """
    probability = logits.sigmoid()
    overlap = (probability * targets).sum(dim=(1, 2))
    total = probability.sum(dim=(1, 2)) + targets.sum(dim=(1, 2))
    return 1 - (2 * overlap + 1) / (total + 1)


def mask_iou(masks: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union of each pair of masks.

    Args:
        masks: (P, H, W), bool.
        targets: (P, H, W), bool.

    Returns:
        (P,); 0 where both are empty.
    """
    overlap = (masks & targets).sum(dim=(1, 2))
    union = (masks | targets).sum(dim=(1, 2))
    return overlap / union.clamp(min=1)
