"""Geometry of views: map prompts into SAM's frame and masks back.

A view is a region of the original image, resized to the valid part of SAM's
square S x S frame; the rest of the frame is padding. Boxes and points go from
the image into the frame, masks come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ['View', 'assign_views', 'paste_masks', 'read_views']


@dataclass(frozen=True, kw_only=True)
class View:
    """One view of an image.

    Args:
        x: Left edge of the region in pixels of the original image.
        y: Upper edge of the region.
        width: Width of the region in pixels of the original image.
        height: Height of the region.
        valid_width: Width of the resized region in the frame.
        valid_height: Height of the resized region in the frame.
    """

    x: int
    y: int
    width: int
    height: int
    valid_width: int
    valid_height: int

    def to_view(self, points: Tensor) -> Tensor:
        """Map (..., 2) x, y from the original image into the frame."""
        origin = points.new_tensor([self.x, self.y])
        return (points - origin) * self._scale(points)

    def to_image(self, points: Tensor) -> Tensor:
        """Map (..., 2) x, y from the frame into the original image."""
        origin = points.new_tensor([self.x, self.y])
        return points / self._scale(points) + origin

    def boxes_to_view(self, boxes: Tensor) -> Tensor:
        """Map (P, 4) boxes x1, y1, x2, y2 into the frame."""
        return self.to_view(boxes.reshape(-1, 2, 2)).reshape(-1, 4)

    def _scale(self, like: Tensor) -> Tensor:
        """Return frame pixels per image pixel, x and y."""
        return like.new_tensor(
            [self.valid_width / self.width, self.valid_height / self.height]
        )


def read_views(metainfo: Mapping[str, Any]) -> list[View]:
    """Read an image's views; the last one is the whole image.

    Args:
        metainfo: With ``sam_views`` (V, 4): x, y, width, height in pixels of
            the original image, and ``sam_view_sizes`` (V, 2): valid height
            and width in the frame.

    Raises:
        ValueError: If they are missing, empty or of different lengths.
    """
    missing = [
        key for key in ('sam_views', 'sam_view_sizes') if key not in metainfo
    ]
    if missing:
        raise ValueError(
            f'the data sample has no {missing[0]!r} in its metainfo: put '
            'SAMViews before the Resize of the pipeline and PackSAMInputs at '
            'its end'
        )
    regions, sizes = metainfo['sam_views'], metainfo['sam_view_sizes']
    if len(regions) == 0 or len(regions) != len(sizes):
        raise ValueError(
            f'sam_views has {len(regions)} rows and sam_view_sizes '
            f'{len(sizes)}: give one row of each for every view'
        )
    return [
        View(
            x=round(float(x)),
            y=round(float(y)),
            width=round(float(width)),
            height=round(float(height)),
            valid_width=int(valid_width),
            valid_height=int(valid_height),
        )
        for (x, y, width, height), (valid_height, valid_width) in zip(
            regions, sizes, strict=True
        )
    ]


def assign_views(
    boxes: Tensor, views: list[View], *, margin: float = 0.1
) -> Tensor:
    """Choose the view of each prompt.

    This is the tile with the nearest center among those that contain the
    grown box, or the last view (the whole image) if there is none.

    Args:
        boxes: (P, 4), x1, y1, x2, y2 in pixels of the original image.
        views: Tiles, then the whole image.
        margin: Growth of the box relative to its sides, half on each side;
            clipped to the image.

    Returns:
        (P,) indices into ``views``.
    """
    whole = len(views) - 1
    chosen = torch.full(
        (len(boxes),), whole, dtype=torch.long, device=boxes.device
    )
    if whole == 0 or len(boxes) == 0:
        return chosen
    tiles = boxes.new_tensor(
        [[v.x, v.y, v.x + v.width, v.y + v.height] for v in views[:whole]]
    )  # T x 4
    limit = boxes.new_tensor([views[whole].width, views[whole].height])
    grow = (boxes[:, 2:] - boxes[:, :2]) * (margin / 2)
    low = torch.minimum((boxes[:, :2] - grow).clamp(min=0), limit)
    high = torch.minimum(boxes[:, 2:] + grow, limit).clamp(min=0)
    contained = (
        (low[:, None] >= tiles[:, :2]) & (high[:, None] <= tiles[:, 2:])
    ).all(dim=2)  # P x T
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    distance = (
        (centers[:, None] - (tiles[:, :2] + tiles[:, 2:]) / 2)
        .square()
        .sum(dim=2)
    )
    distance = distance.masked_fill(~contained, float('inf'))
    return torch.where(contained.any(dim=1), distance.argmin(dim=1), chosen)


def paste_masks(
    logits: Tensor,
    view: View,
    *,
    frame: int,
    image_shape: tuple[int, int],
    threshold: float = 0.0,
) -> Tensor:
    """Paste low-resolution masks of a view into the original image.

    As in SAM: upsample to the frame, crop the valid part, resize it to its
    region, compare with the threshold. Both resizings are bilinear, so a
    pixel exceeds the threshold only if one of the four cells around it does,
    and the rest is skipped.

    Args:
        logits: (P, S / 4, S / 4).
        view: View of the masks.
        frame: Side of the frame, S.
        image_shape: Height and width of the original image.
        threshold: Logits above it are foreground.

    Returns:
        (P, H, W), bool.
    """
    height, width = image_shape
    masks = torch.zeros(
        len(logits), height, width, dtype=torch.bool, device=logits.device
    )
    rows = resize_matrix(
        logits,
        logits.shape[1],
        frame=frame,
        valid=view.valid_height,
        size=view.height,
    )
    columns = resize_matrix(
        logits,
        logits.shape[2],
        frame=frame,
        valid=view.valid_width,
        size=view.width,
    )
    inside = logits > threshold
    for mask, low, cells in zip(masks, logits, inside, strict=True):
        to_y, from_y = needed(rows, cells.any(dim=1))
        to_x, from_x = needed(columns, cells.any(dim=0))
        if to_y.stop == to_y.start or to_x.stop == to_x.start:
            continue
        part = rows[to_y, from_y] @ low.float()[from_y, from_x]
        part = part @ columns[to_x, from_x].T
        region = mask[
            view.y : view.y + view.height, view.x : view.x + view.width
        ]
        # Rounding may extend a region beyond the image by a pixel.
        target = region[to_y, to_x]
        target |= part[: target.shape[0], : target.shape[1]] > threshold
    return masks


def resize_matrix(
    like: Tensor, cells: int, *, frame: int, valid: int, size: int
) -> Tensor:
    """Return both bilinear steps along one side as a matrix, (size, cells).

    Args:
        like: Tensor whose device is used.
        cells: Length of the low-resolution mask.
        frame: Length of the frame that it is upsampled to.
        valid: Part of the frame that is kept.
        size: Length in pixels that this part is resized to.
    """
    unit = torch.eye(cells, device=like.device)[None]
    upsampled = functional.interpolate(
        unit, size=frame, mode='linear', align_corners=False
    )
    resized = functional.interpolate(
        upsampled[..., :valid], size=size, mode='linear', align_corners=False
    )
    return resized[0].T.contiguous()


def needed(matrix: Tensor, inside: Tensor) -> tuple[slice, slice]:
    """Find the pixels affected by foreground cells, and all their cells.

    Args:
        matrix: (size, cells), see :func:`resize_matrix`.
        inside: (cells,), whether a cell has foreground.

    Returns:
        Ranges of pixels and of cells; empty without foreground.
    """
    pixels = span((matrix[:, inside] > 0).any(dim=1))
    return pixels, span((matrix[pixels] > 0).any(dim=0))


def span(flags: Tensor) -> slice:
    """Return the range from the first to the last True."""
    found = flags.nonzero()
    if len(found) == 0:
        return slice(0, 0)
    return slice(int(found[0]), int(found[-1]) + 1)
