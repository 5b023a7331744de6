"""FCOS's head that localizes over a grid."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from mmdet.models.dense_heads import FCOSHead
from mmdet.models.dense_heads.anchor_free_head import AnchorFreeHead
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from taskptq.models.grid.dense_head import GridDenseHeadMixin, rows
from taskptq.models.grid.head import GridBoxCoder
from taskptq.models.grid.refinement import RefinementMixin
from taskptq.registry import MODELS

__all__ = ['GridFCOSHead']


class _LogitsCoder(GridBoxCoder):
    """Decode logits over a grid whose unit is the stride of a point."""

    def decode(
        self, bboxes: Any, pred_bboxes: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Return boxes.

        Args:
            bboxes: x, y and the level's two strides, (N, 4) in pixels.
            pred_bboxes: Logits, (N, 4 (n + 1)).
            *args: Arguments of the host's coder, e.g. ``max_shape``.
            **kwargs: Arguments of the host's coder.
        """
        distances = self.expectation(pred_bboxes) * bboxes[:, 2:3]
        return self.coder.decode(bboxes[:, :2], distances, *args, **kwargs)


class _PointsWithStride:
    """A generator of points that also returns their strides."""

    def __init__(self, generator: Any) -> None:
        self.grid_priors = partial(generator.grid_priors, with_stride=True)


@MODELS.register_module()
class GridFCOSHead(RefinementMixin, GridDenseHeadMixin, FCOSHead):
    """mmdet's FCOSHead with n + 1 logits for the distance to each side.

    The unit of the grid is the level's stride, with or without
    ``norm_on_bbox``. The grid is one-sided, as distances are not negative.
    The default alpha=8 is FCOS's limit on all levels but the last. Config:
    ``type='taskptq.GridFCOSHead'`` with a ``loss_bbox`` of
    ``dict(type='taskptq.GridLoss', _delete_=True)``; see GridDenseHeadMixin
    for keeping the loss of boxes.

    The learned scale of a level, which multiplies FCOS's distances, here
    acts as a temperature of the logits.
    """

    default_grid: ClassVar[Mapping[str, Any]] = {
        'alpha': 8.0,
        'beta': 0.25,
        'num_intervals': 16,
        'one_sided': True,
    }
    regression_layers = ('conv_reg',)

    def _init_predictor(self) -> None:
        super()._init_predictor()
        self.conv_reg = nn.Conv2d(
            self.feat_channels, 4 * self.box_grid.num_points, 3, padding=1
        )

    def forward_single(
        self, x: Tensor, scale: nn.Module, stride: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, logits and centerness of a level.

        Args:
            x: Features, (B, C, H, W).
            scale: Temperature of the level's logits.
            stride: Stride of the level; unused.

        Returns:
            (B, classes, H, W), (B, 4 (n + 1), H, W), (B, 1, H, W).
        """
        del stride
        # Bypass FCOSHead, which would turn the logits into distances.
        scores, logits, cls_feat, reg_feat = AnchorFreeHead.forward_single(
            self, x
        )
        feat = reg_feat if self.centerness_on_reg else cls_feat
        return scores, scale(logits).float(), self.conv_centerness(feat)

    def loss_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        centernesses: list[Tensor],
        batch_gt_instances: Any,
        batch_img_metas: Any,
        batch_gt_instances_ignore: Any = None,
    ) -> dict[str, Tensor]:
        """Return the losses; same arguments as FCOSHead, with logits.

        Args:
            cls_scores: Scores of each level, (B, classes, H, W).
            bbox_preds: Logits of each level, (B, 4 (n + 1), H, W).
            centernesses: Centerness of each level, (B, 1, H, W).
            batch_gt_instances: ``bboxes`` in pixels and ``labels``.
            batch_img_metas: Unused.
            batch_gt_instances_ignore: Unused, as in FCOS.
        """
        del batch_img_metas, batch_gt_instances_ignore
        places, units, labels, targets = self._flat_targets(
            bbox_preds, batch_gt_instances
        )
        scores = torch.cat(
            [rows(level, self.cls_out_channels) for level in cls_scores]
        )
        centerness = torch.cat([rows(x, 1) for x in centernesses]).squeeze(1)
        logits = torch.cat([self.logits_of(level) for level in bbox_preds])
        chosen = self.positives(labels)
        places, units = places[chosen], units[chosen]
        targets = targets[chosen]
        quality = self.centerness_target(targets)
        number = max(reduce_mean(scores.new_tensor(float(len(chosen)))), 1.0)
        decode = partial(self._decode, places=places, units=units)
        loss_bbox, loss_iou = self.box_losses(
            logits[chosen],
            targets=targets,
            boxes=decode(targets),
            decode=decode,
            weight=quality,
            avg_factor=max(reduce_mean(quality.sum().detach()), 1e-6),
        )
        losses = {
            'loss_cls': self.loss_cls(scores, labels, avg_factor=number),
            'loss_bbox': loss_bbox,
            'loss_centerness': self.loss_centerness(
                centerness[chosen], quality, avg_factor=number
            ),
        }
        if self.loss_iou is not None:
            losses['loss_iou'] = loss_iou
        return losses

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Return boxes from logits; same arguments as FCOSHead."""
        # The host decodes only its top candidates, so most logits are never
        # read.
        host = self.bbox_coder, self.prior_generator
        self.bbox_coder = _LogitsCoder(coder=host[0], grid=self.box_grid)
        self.prior_generator = _PointsWithStride(host[1])
        try:
            return super().predict_by_feat(
                cls_scores, bbox_preds, *args, **kwargs
            )
        finally:
            self.bbox_coder, self.prior_generator = host

    def _flat_targets(
        self, levels: list[Tensor], batch_gt_instances: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x, y and unit in pixels, labels and distances, all levels."""
        points = self.prior_generator.grid_priors(
            [level.shape[-2:] for level in levels],
            dtype=levels[0].dtype,
            device=levels[0].device,
        )
        labels, distances = self.get_targets(points, batch_gt_instances)
        units = torch.cat(
            [
                level.new_full((len(level), 1), stride)
                for level, stride in zip(
                    distances, self._strides(), strict=True
                )
            ]
        )
        targets = torch.cat(distances)
        if not self.norm_on_bbox:
            targets = targets / units
        num_images = levels[0].shape[0]
        places = torch.cat([level.repeat(num_images, 1) for level in points])
        return places, units, torch.cat(labels), targets

    def _strides(self) -> list[float]:
        return [float(pair[0]) for pair in self.prior_generator.strides]

    def _decode(
        self, distances: Tensor, *, places: Tensor, units: Tensor
    ) -> Tensor:
        decoded: Tensor = self.bbox_coder.decode(places, distances * units)
        return decoded
