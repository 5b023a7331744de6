"""Grid heads with one box per location: common parts of FCOS, ATSS and GFL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmdet.registry import MODELS as MMDET_MODELS
from torch import Tensor

from taskptq.methods.box_grid.box_grid import BoxGrid
from taskptq.models.grid.head import GridHeadMixin, GridLoss

__all__ = ['GridDenseHeadMixin', 'rows']


def rows(level: Tensor, num_channels: int) -> Tensor:
    """Return (B H W A, C) of a level's (B, A C, H, W)."""
    return level.permute(0, 2, 3, 1).reshape(-1, num_channels)


class GridDenseHeadMixin(GridHeadMixin):
    """For heads whose host computes losses on four numbers per box.

    ``loss_bbox`` trains the logits. A GridLoss replaces the host's box
    losses, and ``loss_iou`` can add one to it. A box loss (IoULoss,
    GIoULoss, NWDLoss) acts on the expectations.

    Args:
        *args: Arguments of the host's head.
        grid: Arguments of BoxGrid, in the head's unit.
        loss_iou: Config of a box loss, in pixels, to add to a GridLoss.
        **kwargs: Arguments of the host's head; ``loss_bbox`` is a GridLoss
            by default.

    Raises:
        ValueError: If there is a ``loss_iou`` without a GridLoss.
    """

    def __init__(
        self,
        *args: Any,
        grid: Mapping[str, Any] | None = None,
        loss_iou: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The host makes its layers in __init__.
        self.grid_settings = grid
        kwargs.setdefault('loss_bbox', {'type': 'taskptq.GridLoss'})
        super().__init__(*args, **kwargs)
        self.loss_iou = None
        if loss_iou is not None:
            self.loss_iou = MMDET_MODELS.build(dict(loss_iou))
        if self.loss_iou is not None and not self.has_grid_loss:
            raise ValueError(
                f'{type(self).__name__}: loss_iou is given, but loss_bbox='
                f'{type(self.loss_bbox).__name__} is a box loss already: use '
                'taskptq.GridLoss there, or remove loss_iou'
            )

    @property
    def has_grid_loss(self) -> bool:
        """Whether cross-entropy over the grid replaces the host's loss."""
        return isinstance(self.loss_bbox, GridLoss)

    def use_grid(self, grid: Mapping[str, Any] | None) -> None:
        """Make the grid and pass it to the loss."""
        self.box_grid = BoxGrid(**(grid or self.default_grid))
        if self.has_grid_loss:
            self.loss_bbox.bind(self.box_grid)

    def _init_layers(self) -> None:
        self.use_grid(self.grid_settings)
        super()._init_layers()

    def get_targets(self, *args: Any, **kwargs: Any) -> Any:
        """Return the host's targets, which are boxes or distances."""
        return super(GridHeadMixin, self).get_targets(*args, **kwargs)

    def logits_of(self, level: Tensor) -> Tensor:
        """Return (B H W A, 4, n + 1) of a level's (B, A 4 (n + 1), H, W)."""
        points = self.box_grid.num_points
        return rows(level, 4 * points).unflatten(-1, (4, points))

    def positives(self, labels: Tensor) -> Tensor:
        """Return the indices of locations with an object, (N,)."""
        found = (labels >= 0) & (labels < self.num_classes)
        return found.nonzero().squeeze(1)

    def box_losses(
        self,
        logits: Tensor,
        *,
        targets: Tensor,
        boxes: Tensor,
        decode: Callable[[Tensor], Tensor],
        weight: Tensor,
        avg_factor: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return ``loss_bbox`` and ``loss_iou`` (0 without one).

        Args:
            logits: Logits of positive boxes, (N, 4, n + 1).
            targets: Targets in units of the grid, (N, 4).
            boxes: Targets as x1, y1, x2, y2 in pixels, (N, 4).
            decode: Turns expectations, (N, 4), into boxes in pixels.
            weight: (N,).
            avg_factor: Divisor of the sum.
        """
        options = {'weight': weight, 'avg_factor': avg_factor}
        if not self.has_grid_loss:
            decoded = decode(self.box_grid(logits))
            loss = self.loss_bbox(decoded, boxes, **options)
            return loss, torch.zeros_like(loss)
        loss = self.loss_bbox(logits, targets, **options)
        if self.loss_iou is None:
            return loss, torch.zeros_like(loss)
        decoded = decode(self.box_grid(logits))
        return loss, self.loss_iou(decoded, boxes, **options)
