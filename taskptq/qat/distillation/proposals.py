"""Proposals that student and teacher see most differently (IDa-Det)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from taskptq.core.settings import Number, Whole
from taskptq.methods.feature_losses import rows_of
from taskptq.methods.ida_det import information_discrepancy, select_pairs
from taskptq.qat.distillation.region import Features, Region, Rows
from taskptq.qat.distillation.scene import BOX_HEADS, Scene, box_head_of

__all__ = ['DiscrepancyRegion', 'level_of_boxes', 'suppressed']

Patches = tuple[Tensor, Tensor, Tensor | None, Tensor]


class DiscrepancyRegion(Region):
    """Patches at the proposals of largest information discrepancy.

    IDa-Det, Xu et al., ECCV 2022 (arXiv 2210.03477): the proposals of both
    models are pooled; a pair of patches is cut out of both features at each;
    each image keeps the share of pairs that differ most.

    Args:
        share: gamma, the share of pairs that is kept, in (0, 1]; 1 keeps
            all.
        score_thr: Least score of a proposal; None is 0.85 of an RPN and 0.3
            of a one-stage head.
        overlap: IoU from which a model's own proposals suppress each other.
        max_boxes: Most proposals of a model and image, best scores first.
        size: Cells of a patch along each side.
        temperature: Of the spatial softmax that discrepancy compares.
    """

    def __init__(
        self,
        *,
        share: float = 0.6,
        score_thr: float | None = None,
        overlap: float = 0.1,
        max_boxes: int = 64,
        size: int = 7,
        temperature: float = 1.0,
    ) -> None:
        rule = Number(low=0, high=1)
        self.share = Number(low=1e-6, high=1).read(share, name='share')
        self.score_thr = Number(low=0, high=1, optional=True).read(
            score_thr, name='score_thr'
        )
        self.overlap = rule.read(overlap, name='overlap')
        self.max_boxes = Whole(low=1, high=1000).read(
            max_boxes, name='max_boxes'
        )
        self.size = Whole(low=2, high=64).read(size, name='size')
        self.temperature = Number(low=1e-3, high=1e3).read(
            temperature, name='temperature'
        )

    def check(self, student: nn.Module, adapter: object) -> None:
        """Refuse models without boxes.

        Raises:
            ValueError: If it has no head that proposes boxes.
        """
        head = getattr(student, box_head_of(student) or '', None)
        if not hasattr(head, 'predict_by_feat'):
            raise ValueError(
                f"regions='discrepancy' needs a detector with "
                f'{" or ".join(BOX_HEADS)}, not {type(student).__name__}: '
                "use regions='foreground' or 'classes'"
            )

    def rows(
        self, scene: Scene, features: Features
    ) -> Iterator[tuple[str, Rows]]:
        """Yield the cells of the chosen patches of each level."""
        boxes, images = self._pooled(scene)
        strides = {
            name: scene.stride(teacher)
            for name, (_, teacher, _) in features.items()
            if teacher.dim() == 4
        }
        if len(strides) < len(features):
            raise ValueError(
                "regions='discrepancy' cuts patches out of maps "
                f'(B, C, H, W), which {next(iter(features))} is not: use '
                "taps='neck'"
            )
        patches = dict(self._patches(boxes, images, features, strides))
        scores = boxes.new_zeros(len(boxes))
        for student, teacher, _, own in patches.values():
            scores[own] = information_discrepancy(
                student.detach(), teacher, temperature=self.temperature
            ).to(scores)
        kept = select_pairs(scores, images, share=self.share)
        for name, (student, teacher, weights, own) in patches.items():
            chosen = torch.isin(own, kept)
            if not chosen.any():
                continue
            flat = None
            if weights is not None:
                flat = weights[chosen].reshape(-1)
            yield (
                name,
                Rows(
                    student=rows_of(student[chosen]),
                    teacher=rows_of(teacher[chosen]),
                    weights=flat,
                ),
            )

    def _patches(
        self,
        boxes: Tensor,
        images: Tensor,
        features: Features,
        strides: dict[str, float],
    ) -> Iterator[tuple[str, Patches]]:
        """Yield each level's patches and the indices of their boxes, (n,)."""
        levels = level_of_boxes(boxes, list(strides.values()), cells=self.size)
        for number, (name, stride) in enumerate(strides.items()):
            own = (levels == number).nonzero()[:, 0]
            if not len(own):
                continue
            rois = torch.cat([images[own, None].to(boxes), boxes[own]], dim=1)
            student, teacher, weights = features[name]
            yield (
                name,
                (
                    self._cut(student, rois, stride),
                    self._cut(teacher, rois, stride),
                    None
                    if weights is None
                    else self._cut(weights, rois, stride),
                    own,
                ),
            )

    def _cut(self, feature: Tensor, rois: Tensor, stride: float) -> Tensor:
        from mmcv.ops import roi_align

        found: Tensor = roi_align(
            feature,
            rois.to(feature),
            (self.size, self.size),
            1 / stride,
            1,
            'avg',
            True,
        )
        return found

    @torch.no_grad()
    def _pooled(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Return both models' proposals, (N, 4), and their images, (N,).

        An image without any has its true boxes.
        """
        found = scene.proposals(score_thr=self.score_thr)
        count = len(scene.samples)
        boxes: list[Tensor] = []
        images: list[Tensor] = []
        for image in range(count):
            pair = (found[image], found[count + image])
            both = torch.cat(
                [
                    suppressed(
                        *one, overlap=self.overlap, limit=self.max_boxes
                    )
                    for one in pair
                ]
            )
            if not len(both):
                both = scene.annotations()[image]
            boxes.append(both)
            images.append(torch.full((len(both),), image, device=both.device))
        return torch.cat(boxes), torch.cat(images)


def suppressed(
    boxes: Tensor, scores: Tensor, *, overlap: float, limit: int
) -> Tensor:
    """Return the best boxes that do not overlap, (N, 4) -> (n, 4).

    Args:
        boxes: Corners.
        scores: (N,).
        overlap: IoU above which the better box suppresses the other.
        limit: Most boxes.
    """
    from mmcv.ops import nms

    if not len(boxes):
        return boxes
    kept = nms(boxes.float(), scores.float(), overlap)[1]
    return boxes[kept[:limit]]


def level_of_boxes(
    boxes: Tensor, strides: list[float], *, cells: int
) -> Tensor:
    """Return the level whose cells suit each box.

    The coarsest one on which the box still has ``cells`` cells along its
    mean side, so that a patch of as many is not enlarged; else the finest.

    Args:
        boxes: Corners in pixels, (N, 4).
        strides: Pixels of a cell of each level.
        cells: Cells of a patch along a side.

    >>> level_of_boxes(torch.tensor([[0., 0, 20, 20], [0, 0, 60, 60]]),
    ...                [4.0, 8.0, 16.0], cells=7)
    tensor([0, 1])
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1).sqrt()
    order = sorted(range(len(strides)), key=lambda level: strides[level])
    levels = torch.full_like(sides, order[0], dtype=torch.int64)
    for level in order[1:]:
        levels[sides >= cells * strides[level] - 1e-6] = level
    return levels
