"""NWD in mmdet: as a metric of assigners, as a loss, and in NMS.

The formula is in ``taskptq.methods.box_grid.wasserstein``.
"""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.structures.bbox import bbox_overlaps, get_box_tensor
from torch import Tensor, nn

from taskptq.methods.box_grid.wasserstein import wasserstein_similarity
from taskptq.registry import MODELS, TASK_UTILS

__all__ = ['NWDLoss', 'NWDistance', 'wasserstein_nms']


@TASK_UTILS.register_module()
class NWDistance:
    """Normalized Wasserstein similarity as ``iou_calculator``.

    For every assigner of mmdet that accepts one, e.g.
    ``dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3,
    iou_calculator=dict(type='taskptq.NWDistance'))``. Thresholds differ from
    those for IoU: equal boxes 1.8 px apart score 0.87.

    Args:
        constant: C of exp(-W_2 / C) in pixels of the network's input; about
            the mean object size of the data set (12.8 for AI-TOD).

    Raises:
        ValueError: If the constant is not positive.
    """

    def __init__(self, *, constant: float = 12.8) -> None:
        if not constant > 0:
            raise ValueError(
                f'constant={constant}: give a positive number of pixels'
            )
        self.constant = constant

    def __call__(
        self,
        bboxes1: Any,
        bboxes2: Any,
        mode: str = 'iou',
        is_aligned: bool = False,
    ) -> Tensor:
        """Compare boxes.

        Args:
            bboxes1: (M, 4 or 5) of x1, y1, x2, y2 in pixels, or a BaseBoxes;
                a fifth column, the score, is ignored.
            bboxes2: (N, 4 or 5), in the same form.
            mode: 'iou' stands for NWD. 'iof', which assigners use to find
                boxes inside ignored regions, stays unchanged.
            is_aligned: Compare boxes row by row only; M = N.

        Returns:
            (M, N), or (M,) if aligned; in [0, 1].

        Raises:
            ValueError: If the mode is neither.
        """
        one = get_box_tensor(bboxes1)[..., :4]
        two = get_box_tensor(bboxes2)[..., :4]
        if mode == 'iof':
            return bbox_overlaps(one, two, mode, is_aligned)
        if mode != 'iou':
            raise ValueError(
                f'mode={mode!r}: NWDistance supports iou (NWD) and iof'
            )
        return wasserstein_similarity(
            one, two, constant=self.constant, aligned=is_aligned
        )

    def __repr__(self) -> str:
        return f'{type(self).__name__}(constant={self.constant})'


@MODELS.register_module()
class NWDLoss(nn.Module):
    """1 - NWD of decoded boxes, for ``loss_bbox`` or ``loss_iou``.

    Args:
        constant: C of exp(-W_2 / C), in the unit of the boxes.
        reduction: 'none', 'mean' or 'sum'.
        loss_weight: Factor of the loss; the paper uses 2 (one-stage) to 10
            (region proposals).
    """

    def __init__(
        self,
        *,
        constant: float = 12.8,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.constant = constant
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Return the weighted loss.

        Args:
            pred: (N, 4) of x1, y1, x2, y2.
            target: (N, 4) of x1, y1, x2, y2.
            weight: (N,), or (N, 4), which is averaged over coordinates.
            avg_factor: Divisor of the mean instead of N.
            reduction_override: Reduction for this call.
        """
        reduction = reduction_override or self.reduction
        if weight is not None and weight.dim() > 1:
            weight = weight.mean(dim=-1)
        loss = 1 - wasserstein_similarity(
            pred, target, constant=self.constant, aligned=True
        )
        reduced: Tensor = weight_reduce_loss(
            loss, weight, reduction, avg_factor
        )
        return self.loss_weight * reduced


def wasserstein_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    iou_threshold: float = 0.85,
    constant: float = 12.8,
    max_num: int = -1,
) -> tuple[Tensor, Tensor]:
    """Run greedy NMS that compares by NWD, with the interface of mmcv's.

    mmcv has no registry for NMS: ``batched_nms`` calls the ``type`` of its
    settings if that is a function, and otherwise evaluates it as Python
    inside mmcv. A config in the new, pure Python style thus writes
    ``nms=dict(type=wasserstein_nms, iou_threshold=0.85)``, a config in text
    style the expression
    ``type='__import__("taskptq.models.grid.wasserstein", fromlist=["x"])'
    '.wasserstein_nms'``.

    ``batched_nms`` separates classes by shifting their boxes past the largest
    coordinate. That removes overlaps, but NWD also compares neighbors: below
    a threshold of about 0.8, boxes of two classes in opposite corners of an
    image can suppress each other. Set ``class_agnostic=True`` there to let
    classes suppress each other everywhere.

    Args:
        boxes: (N, 4) of x1, y1, x2, y2 in pixels.
        scores: (N,).
        iou_threshold: NWD with a better box above which a box is removed.
        constant: C of exp(-W_2 / C) in pixels.
        max_num: Most boxes to keep, -1 for all.

    Returns:
        The kept boxes with their scores, (K, 5), by descending score, and
        their indices, (K,).
    """
    order = scores.argsort(descending=True, stable=True)
    keep: list[Tensor] = []
    while order.numel() > 0 and len(keep) != max_num:
        best, order = order[0], order[1:]
        keep.append(best)
        similarity = wasserstein_similarity(
            boxes[best][None], boxes[order], constant=constant
        )
        order = order[similarity[0] <= iou_threshold]
    index = torch.stack(keep) if keep else order
    return torch.cat([boxes[index], scores[index, None]], dim=-1), index
