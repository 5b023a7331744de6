"""GFL's head on a non-uniform grid."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from mmdet.models.dense_heads import GFLHead
from mmdet.structures.bbox import bbox_overlaps
from mmengine.logging import print_log
from torch import Tensor, nn

from taskptq.methods.box_grid.box_grid import BoxGrid
from taskptq.models.grid.dense_head import GridDenseHeadMixin, rows
from taskptq.models.grid.head import GridLoss
from taskptq.models.grid.refinement import RefinementMixin
from taskptq.registry import MODELS

__all__ = ['GridGFLHead', 'GridIntegral']


class GridIntegral(nn.Module):
    """Expectation over a grid, replacing GFL's own integral.

    Args:
        grid: The grid.
    """

    def __init__(self, *, grid: BoxGrid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, logits: Tensor) -> Tensor:
        """Return distances from logits, (..., 4 (n + 1)) -> (N, 4)."""
        points = self.grid.num_points
        return self.grid(logits.reshape(-1, 4, points))


@MODELS.register_module()
class GridGFLHead(RefinementMixin, GridDenseHeadMixin, GFLHead):
    """mmdet's GFLHead whose distances lie on a grid dense around 0.

    The unit of the grid is the level's stride. By default alpha=16 as in
    GFL, beta=0.125, n=16: points are 0.33 strides apart at a near side and
    2.2 at a far one; in GFL always 1.

    With a ``loss_bbox`` of ``dict(type='taskptq.GridLoss', _delete_=True)``,
    cross-entropy over the grid (and its uncertainty) replaces both box
    losses, as in UGS. GFL's own losses are both kept: GIoU on the
    expectations, and the distribution focal loss, which on such a grid weighs
    the two points around a target by their distances to it. ``loss_dfl`` may
    also be a GridLoss.

    Args:
        *args: Arguments of GFLHead.
        reg_max: Ignored; ``grid`` replaces this setting of the host.
        **kwargs: Arguments of GridDenseHeadMixin and GFLHead.
    """

    default_grid: ClassVar[Mapping[str, Any]] = {
        'alpha': 16.0,
        'beta': 0.125,
        'num_intervals': 16,
        'one_sided': True,
    }
    regression_layers = ('gfl_reg',)

    def __init__(
        self, *args: Any, reg_max: int | None = None, **kwargs: Any
    ) -> None:
        del reg_max
        super().__init__(*args, **kwargs)
        self.integral = GridIntegral(grid=self.box_grid)
        if isinstance(self.loss_dfl, GridLoss):
            self.loss_dfl.bind(self.box_grid)

    def use_grid(self, grid: Mapping[str, Any] | None) -> None:
        """Make the grid; the host sizes its layer by ``reg_max``."""
        super().use_grid(grid)
        self.reg_max = self.box_grid.num_intervals

    def loss_by_feat_single(
        self,
        anchors: Tensor,
        cls_score: Tensor,
        bbox_pred: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        stride: tuple[int, int],
        avg_factor: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the losses of a level; same arguments as GFLHead.

        Args:
            anchors: (B, A, 4) in pixels.
            cls_score: Joint score of class and quality, (B, classes, H, W).
            bbox_pred: Logits, (B, 4 (n + 1), H, W).
            labels: (B, A).
            label_weights: (B, A).
            bbox_targets: Boxes in pixels, (B, A, 4).
            stride: Stride of the level, the same in x and y.
            avg_factor: Number of positive anchors.

        Returns:
            Losses of classes and of boxes, ``loss_dfl`` (``loss_iou`` with a
            GridLoss), and the host's divisor of the last two.
        """
        labels = labels.reshape(-1)
        scores = rows(cls_score, self.cls_out_channels)
        chosen = self.positives(labels)
        places = self.anchor_center(anchors.reshape(-1, 4)[chosen])
        boxes = bbox_targets.reshape(-1, 4)[chosen]
        logits = self.logits_of(bbox_pred)[chosen]
        targets = self.bbox_coder.encode(places, boxes) / stride[0]
        confidence = scores.detach().sigmoid().amax(dim=1)[chosen]
        decode = partial(self._decode, places=places, unit=stride[0])
        loss_bbox, other = self.box_losses(
            logits,
            targets=targets,
            boxes=boxes,
            decode=decode,
            weight=confidence,
            avg_factor=1.0,
        )
        if not self.has_grid_loss:
            other = self._distribution_loss(logits, targets, confidence)
        quality = label_weights.new_zeros(labels.shape)
        decoded = decode(self.box_grid(logits.detach()))
        quality[chosen] = bbox_overlaps(decoded, boxes, is_aligned=True).to(
            quality.dtype
        )
        loss_cls = self.loss_cls(
            scores,
            (labels, quality),
            weight=label_weights.reshape(-1),
            avg_factor=avg_factor,
        )
        return loss_cls, loss_bbox, other, confidence.sum()

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the losses; same arguments as GFLHead."""
        losses: dict[str, Any] = super().loss_by_feat(*args, **kwargs)
        if self.has_grid_loss:
            other = losses.pop('loss_dfl')
            if self.loss_iou is not None:
                losses['loss_iou'] = other
        return losses

    def _distribution_loss(
        self, logits: Tensor, targets: Tensor, weight: Tensor
    ) -> Tensor:
        """Return ``loss_dfl`` of (N, 4, n + 1) logits, averaged over sides."""
        if isinstance(self.loss_dfl, GridLoss):
            loss: Tensor = self.loss_dfl(
                logits, targets, weight=weight, avg_factor=4.0
            )
            return loss
        indices = torch.arange(self.box_grid.num_points, device=logits.device)
        positions = self.box_grid.two_hot(targets) @ indices.to(
            self.box_grid.points.dtype
        )
        # The host also looks up the point above a target.
        positions = positions.clamp(max=self.box_grid.num_intervals - 1e-3)
        loss = self.loss_dfl(
            logits.flatten(0, 1),
            positions.flatten(),
            weight=weight[:, None].expand(-1, 4).reshape(-1),
            avg_factor=4.0,
        )
        return loss

    def _decode(
        self, distances: Tensor, *, places: Tensor, unit: float
    ) -> Tensor:
        decoded: Tensor = self.bbox_coder.decode(places, distances * unit)
        return decoded

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        # GFL saves its points 0, 1, 2, ...; this head doesn't save its own.
        given = state_dict.pop(f'{prefix}integral.project', None)
        own = self.box_grid.points
        if (
            given is not None
            and len(given) == len(own)
            and not (torch.allclose(given.to(own), own))
        ):
            layer = self.gfl_reg.state_dict(prefix=f'{prefix}gfl_reg.')
            state_dict.update(
                {key: value.clone() for key, value in layer.items()}
            )
            print_log(
                f'{prefix}gfl_reg: kept as initialized, because the '
                "checkpoint's layer is for GFL's uniform grid; everything "
                'else was loaded: train this part',
                logger='current',
                level=logging.WARNING,
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
