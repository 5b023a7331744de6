"""Named outputs of two-stage detectors, with or without grid heads.

Proposals depend on the model. For an objective that compares two models, the
second one runs on the regions of the first (``forward_like``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from taskptq.engine.adapters import Adapter, uncertainty
from taskptq.engine.grid_outputs import (
    box_probability,
    num_points,
    split_map,
    split_regions,
)
from taskptq.registry import ADAPTERS

__all__ = ['TwoStageAdapter', 'pack_regions', 'unpack_regions']


def pack_regions(rois: Tensor) -> Tensor:
    """Store regions bit for bit as integers, since no head outputs them.

    Args:
        rois: (R, 5), index of the image and x1, y1, x2, y2 in pixels.

    Returns:
        (R, 5), int32.
    """
    return rois.detach().float().contiguous().view(torch.int32)


def unpack_regions(packed: Tensor) -> Tensor:
    """Undo :func:`pack_regions`."""
    return packed.contiguous().view(torch.float32)


@ADAPTERS.register_module(
    name='mmdet.models.detectors.two_stage.TwoStageDetector'
)
class TwoStageAdapter(Adapter):
    """Adapter of Faster R-CNN and similar: region proposals, one box head.

    Raw outputs are ``'rpn_cls.{level}'`` (N, A, H, W) and
    ``'rpn_box.{level}'`` (N, A * K, H, W), and for all regions of the batch
    ``'cls'`` (R, classes + 1) and ``'box'`` (R, classes * K). K is 4 deltas,
    or 4 (n + 1) logits over a grid. ``'rois'`` holds the regions
    (:func:`pack_regions`).

    Args:
        model: The detector; ``forward_heads`` also accepts a quantized copy
            of it.
    """

    head_kinds: ClassVar[dict[str, str]] = {
        '*cls*': 'confidence',
        '*box*': 'regression',
    }
    channel_dims: ClassVar[dict[str, tuple[int, ...]]] = {
        'cls': (1,),
        'box': (1,),
    }

    def forward_heads(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Run a model on its own proposals.

        Args:
            model: Float or quantized model.
            batch: Collated batch of the dataloader.

        Raises:
            NotImplementedError: If the detector has no single box head.
        """
        return self._run(model, batch, rois=None)

    def forward_like(
        self, model: nn.Module, batch: Any, *, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Run a model on the proposals of another model.

        Args:
            model: Float or quantized model.
            batch: Collated batch.
            heads: Outputs of the other model.
        """
        return self._run(model, batch, rois=unpack_regions(heads['rois']))

    def _run(
        self, model: nn.Module, batch: Any, *, rois: Tensor | None
    ) -> dict[str, Tensor]:
        roi_head = getattr(model, 'roi_head', None)
        if not isinstance(
            getattr(roi_head, 'bbox_head', None), nn.Module
        ) or isinstance(roi_head.bbox_head, nn.ModuleList):
            raise NotImplementedError(
                f'{type(model).__name__} has no single box head, so its '
                'regions change between stages: register an adapter for its '
                "class, or reconstruct with scope='block'"
            )
        data = model.data_preprocessor(batch, False)
        features = model.extract_feat(data['inputs'])
        scores, boxes = model.rpn_head(features)
        if rois is None:
            rois = self._propose(model, scores, boxes, data['data_samples'])
        found = roi_head._bbox_forward(features, rois)
        outputs = {f'rpn_cls.{i}': score for i, score in enumerate(scores)}
        outputs |= {f'rpn_box.{i}': box for i, box in enumerate(boxes)}
        return {
            **outputs,
            'cls': found['cls_score'],
            'box': found['bbox_pred'],
            'rois': pack_regions(rois),
        }

    @torch.no_grad()
    def _propose(
        self,
        model: nn.Module,
        scores: Sequence[Tensor],
        boxes: Sequence[Tensor],
        samples: Sequence[Any],
    ) -> Tensor:
        """Return the regions for the second stage, (R, 5)."""
        found = model.rpn_head.predict_by_feat(
            scores,
            boxes,
            batch_img_metas=[sample.metainfo for sample in samples],
            rescale=False,
        )
        regions = [
            torch.cat(
                [one.bboxes.new_full((len(one), 1), index), one.bboxes[:, :4]],
                dim=1,
            )
            for index, one in enumerate(found)
        ]
        return torch.cat(regions)

    def foreground_proxy(
        self, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return anchors' objectness and regions' class probabilities.

        A class-specific box gets the probability of its class.
        """
        weights = super().foreground_proxy(heads)
        for name, head in heads.items():
            if not name.startswith('rpn_cls.'):
                continue
            objectness = self._objectness(head)
            weights[name] = box_probability(
                objectness, num_outputs=head.shape[1]
            )
            box = name.replace('cls', 'box')
            weights[box] = box_probability(
                objectness, num_outputs=heads[box].shape[1]
            )
        if 'cls' in heads:
            # The last class is the background.
            classes = heads['cls'].softmax(dim=1)[:, :-1]
            best = classes.amax(dim=1, keepdim=True)
            agnostic = self.model.roi_head.bbox_head.reg_class_agnostic
            weights['cls'] = best
            weights['box'] = box_probability(
                best if agnostic else classes,
                num_outputs=heads['box'].shape[1],
            )
        return weights

    def output_weights(self, heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weigh proposals and regions; regions have softmax scores.

        Args:
            heads: Outputs of ``forward_heads`` of the float model.
        """
        weights = super().output_weights(heads)
        if 'cls' in heads:
            weights['cls'] = uncertainty(heads['cls'].softmax(dim=1))
        return weights

    def _objectness(self, scores: Tensor) -> Tensor:
        """Return the probability of an object, (N, A, H, W)."""
        head = self.model.rpn_head
        if head.use_sigmoid_cls:
            return scores.sigmoid()
        split = scores.unflatten(1, (-1, int(head.cls_out_channels)))
        return split.softmax(dim=2)[:, :, 0]

    def box_distributions(
        self, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the distributions of grid heads, points on the last axis.

        Args:
            heads: Outputs, or weights of the same shapes.

        Returns:
            ``'rpn_box.{level}'`` (N, A, H, W, 4, n + 1) and ``'box'``
            (R, K, 4, n + 1), for heads with a grid.
        """
        found: dict[str, Tensor] = {}
        points = num_points(self.model.rpn_head)
        if points is not None:
            found |= {
                name: split_map(head, points=points)
                for name, head in heads.items()
                if name.startswith('rpn_box.')
            }
        points = num_points(self.model.roi_head.bbox_head)
        if points is not None and 'box' in heads:
            found['box'] = split_regions(heads['box'], points=points)
        return found

    def decode(
        self, heads: Mapping[str, Tensor], metas: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Return mmdet's InstanceData (boxes in pixels) of each image."""
        rois = unpack_regions(heads['rois'])
        masks = [rois[:, 0] == index for index in range(len(metas))]
        roi_head = self.model.roi_head
        return list(
            roi_head.bbox_head.predict_by_feat(
                rois=tuple(rois[mask] for mask in masks),
                cls_scores=tuple(heads['cls'][mask] for mask in masks),
                bbox_preds=tuple(heads['box'][mask] for mask in masks),
                batch_img_metas=[dict(meta) for meta in metas],
                rcnn_test_cfg=roi_head.test_cfg,
                rescale=True,
            )
        )
