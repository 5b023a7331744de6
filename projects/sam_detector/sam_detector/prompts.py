"""Prompts of Segment Anything: boxes and points, exact or jittered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ['Prompts', 'inner_points', 'jitter_boxes']

# Falloff of a filled box at its edge, in cells of the mask.
EDGE_GAIN = 1.0
# Limit of a mask prompt's logits, +-10 as in SAM's own masks.
MASK_LOGIT = 10.0


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """P prompts of one view.

    Args:
        boxes: (P, 4), x1, y1, x2, y2 in pixels of the view, or None.
        points: (P, K, 2), x, y in pixels of the view, or None.
        labels: (P, K), 1 inside, 0 outside, -1 for padding; with ``points``.

    Raises:
        ValueError: If there is neither a box nor a point, or the numbers of
            prompts differ.
    """

    boxes: Tensor | None = None
    points: Tensor | None = None
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        given = {
            name: len(part)
            for name, part in vars(self).items()
            if part is not None
        }
        if not given or len(set(given.values())) > 1:
            raise ValueError(
                f'prompts have {given or "nothing"}: give boxes, or points '
                'with labels, or all of them, as many of each'
            )
        if (self.points is None) != (self.labels is None):
            missing = 'points' if self.points is None else 'labels'
            raise ValueError(
                f'prompts have {given} but no {missing}: points and labels go '
                'together'
            )

    def __len__(self) -> int:
        part = self.points if self.boxes is None else self.boxes
        assert part is not None
        return len(part)

    def __getitem__(self, index: slice | Tensor) -> Prompts:
        """Select prompts."""
        return Prompts(
            boxes=None if self.boxes is None else self.boxes[index],
            points=None if self.points is None else self.points[index],
            labels=None if self.labels is None else self.labels[index],
        )

    def box_masks(self, *, image_size: int, cells: int) -> Tensor:
        """Draw each box filled, as logits of a low-resolution mask.

        Args:
            image_size: Side of the view in pixels.
            cells: Side of the mask.

        Returns:
            (P, 1, cells, cells); the sign changes at the box's edge, and the
            slope encodes where the edge lies between two cells.

        Raises:
            ValueError: If the prompts have no boxes.
        """
        if self.boxes is None:
            raise ValueError('the prompts have no boxes to draw')
        boxes = self.boxes * (cells / image_size)
        centers = torch.arange(cells, device=boxes.device) + 0.5
        x1, y1, x2, y2 = (side[:, None] for side in boxes.unbind(dim=1))
        inside_x = torch.minimum(centers - x1, x2 - centers)  # P x cells
        inside_y = torch.minimum(centers - y1, y2 - centers)
        depth = torch.minimum(inside_y[:, :, None], inside_x[:, None, :])
        return (MASK_LOGIT * torch.tanh(EDGE_GAIN * depth))[:, None]


def jitter_boxes(
    boxes: Tensor,
    *,
    ratio: float,
    image_size: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Move each side of each box at random.

    Args:
        boxes: (P, 4), x1, y1, x2, y2 in pixels.
        ratio: Standard deviation of the move, relative to the box's side
            (SAM's paper: 0.1); moves are clipped at twice that.
        image_size: Side of the view; the result is clipped to it.
        generator: Source of randomness.

    Returns:
        (P, 4).
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(
        boxes.shape, generator=generator, device=boxes.device
    ).clamp(-2, 2)
    return (boxes + ratio * sides * noise).clamp(0, image_size)


def inner_points(
    masks: Tensor, *, random: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Choose a point inside each mask.

    Args:
        masks: (P, H, W), bool or 0 and 1.
        random: Any pixel of the mask; else the first of those that lie
            farthest from the background and from the edge of the image, in
            steps to any of eight neighbors (the protocol of point-prompt
            evaluation).
        generator: Source of randomness.

    Returns:
        (P, 2), x, y of the pixel's center in pixels of the mask; the first
        pixel for an empty mask.

    Raises:
        ValueError: If ``random`` is set and a mask is empty.
    """
    width = masks.shape[-1]
    weight = masks.float()
    if random:
        empty = (weight.flatten(1).sum(dim=1) == 0).nonzero()
        if len(empty) > 0:
            raise ValueError(
                f'masks[{int(empty[0])}] is empty, so no point lies inside: '
                'drop such objects first'
            )
        index = torch.multinomial(weight.flatten(1), 1, generator=generator)[
            :, 0
        ]
    else:
        index = _depth(weight).flatten(1).argmax(dim=1)
    return torch.stack([index % width, index // width], dim=1) + 0.5


def _depth(masks: Tensor) -> Tensor:
    """Return how many 3 x 3 erosions each pixel survives, (P, H, W)."""
    depth = masks.clone()
    layer = masks
    while bool(layer.any()):
        padded = functional.pad(layer[:, None], (1, 1, 1, 1))
        layer = -functional.max_pool2d(-padded, 3, stride=1)[:, 0]
        depth += layer
    return depth
