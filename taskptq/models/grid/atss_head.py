"""ATSS's head that localizes over a grid."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from mmdet.models.dense_heads import ATSSHead
from torch import Tensor, nn

from taskptq.models.grid.dense_head import GridDenseHeadMixin, rows
from taskptq.models.grid.head import GridBoxCoder
from taskptq.models.grid.refinement import RefinementMixin
from taskptq.registry import MODELS

__all__ = ['GridATSSHead']


@MODELS.register_module()
class GridATSSHead(RefinementMixin, GridDenseHeadMixin, ATSSHead):
    """mmdet's ATSSHead with n + 1 logits for each encoded coordinate.

    The unit of the grid is the box coder's. Deltas (DeltaXYWHBBoxCoder, the
    zoo's coder) need a two-sided grid; the default alpha=10 reaches objects
    of an eighth of their anchor with stds of 0.1 and 0.2. Distances in
    anchor sizes (TBLRBBoxCoder) need a one-sided grid. Config:
    ``type='taskptq.GridATSSHead'`` with a ``loss_bbox`` of
    ``dict(type='taskptq.GridLoss', _delete_=True)``; see GridDenseHeadMixin
    for keeping the loss of boxes.

    Raises:
        ValueError: If ``reg_decoded_bbox`` is False, which leaves mmdet's
            centerness without boxes.
    """

    default_grid: ClassVar[Mapping[str, Any]] = {
        'alpha': 10.0,
        'beta': 0.2,
        'num_intervals': 16,
    }
    regression_layers = ('atss_reg',)

    def use_grid(self, grid: Mapping[str, Any] | None) -> None:
        """Make the grid and wrap the coder with it."""
        if not self.reg_decoded_bbox:
            raise ValueError(
                'GridATSSHead: reg_decoded_bbox=False, but centerness is '
                'measured on boxes: leave it at True, also with a GridLoss'
            )
        super().use_grid(grid)
        self.bbox_coder = GridBoxCoder(
            coder=self.bbox_coder, grid=self.box_grid
        )

    def _init_layers(self) -> None:
        super()._init_layers()
        self.atss_reg = nn.Conv2d(
            self.feat_channels,
            self.num_base_priors * self.bbox_coder.encode_size,
            self.pred_kernel_size,
            padding=self.pred_kernel_size // 2,
        )

    def loss_by_feat_single(
        self,
        anchors: Tensor,
        cls_score: Tensor,
        bbox_pred: Tensor,
        centerness: Tensor,
        labels: Tensor,
        label_weights: Tensor,
        bbox_targets: Tensor,
        avg_factor: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the losses of a level; same arguments as ATSSHead.

        Args:
            anchors: (B, A, 4) in pixels.
            cls_score: (B, classes, H, W).
            bbox_pred: Logits, (B, 4 (n + 1), H, W).
            centerness: (B, 1, H, W).
            labels: (B, A).
            label_weights: (B, A).
            bbox_targets: Boxes in pixels, (B, A, 4).
            avg_factor: Number of positive anchors.

        Returns:
            Losses of classes, of boxes (``loss_bbox``, ``loss_iou``) and of
            centerness, and the host's divisor of the second.
        """
        labels = labels.reshape(-1)
        chosen = self.positives(labels)
        anchors = anchors.reshape(-1, 4)[chosen]
        boxes = bbox_targets.reshape(-1, 4)[chosen]
        quality = self.centerness_target(anchors, boxes)
        coder = self.bbox_coder.coder
        pair = self.box_losses(
            self.logits_of(bbox_pred)[chosen],
            targets=coder.encode(anchors, boxes),
            boxes=boxes,
            decode=partial(coder.decode, anchors),
            weight=quality,
            avg_factor=1.0,
        )
        loss_cls = self.loss_cls(
            rows(cls_score, self.cls_out_channels),
            labels,
            label_weights.reshape(-1),
            avg_factor=avg_factor,
        )
        loss_centerness = self.loss_centerness(
            rows(centerness, 1).squeeze(1)[chosen],
            quality,
            avg_factor=avg_factor,
        )
        return loss_cls, torch.stack(pair), loss_centerness, quality.sum()

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the losses; same arguments as ATSSHead, with logits."""
        losses: dict[str, Any] = super().loss_by_feat(*args, **kwargs)
        pairs = losses['loss_bbox']
        losses['loss_bbox'] = [pair[0] for pair in pairs]
        if self.loss_iou is not None:
            losses['loss_iou'] = [pair[1] for pair in pairs]
        return losses
