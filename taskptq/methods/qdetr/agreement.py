"""Measure how far matched queries of two DETRs disagree.

``L_DRD`` of Q-DETR, Xu et al., CVPR 2023 (arXiv 2304.00253), equation 13,
and the agreement of boxes and classes, which replaces the detection loss
without labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from taskptq.methods.qdetr.matching import (
    QueryMatch,
    corner_giou,
    row_distance,
    strip_similarity,
    to_corners,
)

__all__ = [
    'GIOU_WEIGHT',
    'L1_WEIGHT',
    'MatchedAgreement',
    'background_divergence',
    'box_distances',
    'check_metric',
    'class_divergence',
    'compare_channels',
    'compare_teachers',
    'distillation_distance',
    'matched_agreement',
    'matched_divergence',
    'relative_distance',
]

# Weights of the two box terms in DETR's loss (Carion et al., ECCV 2020).
L1_WEIGHT = 5.0
GIOU_WEIGHT = 2.0

Heads = Mapping[str, Tensor]


def distillation_distance(
    student: Tensor, teacher: Tensor, *, match: QueryMatch
) -> Tensor:
    """Return ``L_DRD``, the mean distance of matched features (eq. 13).

    Args:
        student: Co-attended features D of the student, (B, N, E).
        teacher: Those of the teacher, (B, K, E); gets no gradient.
        match: Pairs of queries; without any the result is 0.
    """
    if not len(match):
        return student.float().sum() * 0.0
    target = match.of_teacher(teacher.detach()).float()
    apart = match.of_student(student).float() - target
    # Its gradient is 0, not undefined, for equal features.
    norms: Tensor = torch.linalg.vector_norm(apart, dim=-1)
    return norms.mean()


def relative_distance(
    student: Tensor, teacher: Tensor, *, match: QueryMatch
) -> Tensor:
    """Return ``L_DRD`` over the RMS norm of the teacher's features.

    Args:
        student: See :func:`distillation_distance`.
        teacher: See :func:`distillation_distance`.
        match: See :func:`distillation_distance`.
    """
    features = teacher.detach().float()
    norm = features.square().sum(dim=-1).mean().sqrt().clamp(min=1e-12)
    return distillation_distance(student, features, match=match) / norm


def class_divergence(
    student: Tensor, teacher: Tensor, *, use_sigmoid: bool
) -> Tensor:
    """Return KL(teacher || student) of each row of logits, (..., C) -> (...).

    Args:
        student: Logits.
        teacher: Logits; get no gradient.
        use_sigmoid: Classes are independent and their divergences summed;
            otherwise a softmax covers them and the background.
    """
    student, teacher = student.float(), teacher.detach().float()
    if not use_sigmoid:
        divergence = F.kl_div(
            student.log_softmax(dim=-1),
            teacher.log_softmax(dim=-1),
            reduction='none',
            log_target=True,
        )
        return divergence.sum(dim=-1)
    target = teacher.sigmoid()
    crossed = F.binary_cross_entropy_with_logits(
        student, target, reduction='none'
    )
    own = F.binary_cross_entropy_with_logits(teacher, target, reduction='none')
    return (crossed - own).sum(dim=-1)


def matched_divergence(
    student: Tensor, teacher: Tensor, *, match: QueryMatch, use_sigmoid: bool
) -> Tensor:
    """Return the mean :func:`class_divergence` of matched queries.

    Args:
        student: Logits, (B, N, C).
        teacher: Logits, (B, K, C); get no gradient.
        match: Pairs of queries; without any the result is 0.
        use_sigmoid: See :func:`class_divergence`.
    """
    if not len(match):
        return student.float().sum() * 0.0
    return class_divergence(
        match.of_student(student),
        match.of_teacher(teacher),
        use_sigmoid=use_sigmoid,
    ).mean()


def background_divergence(
    student: Tensor, own: Tensor, *, match: QueryMatch, use_sigmoid: bool
) -> Tensor:
    """Return the mean :func:`class_divergence` of queries without partner.

    Args:
        student: Logits, (B, N, C).
        own: The float model's logits of the same queries, (B, N, C).
        match: Pairs of queries; if all are matched, the result is 0.
        use_sigmoid: See :func:`class_divergence`.
    """
    rest = torch.ones(
        student.shape[:2], dtype=torch.bool, device=student.device
    )
    rest[match.image, match.student] = False
    if len(match) == rest.numel():
        return student.float().sum() * 0.0
    return class_divergence(
        student[rest], own[rest], use_sigmoid=use_sigmoid
    ).mean()


def box_distances(
    student: Tensor,
    teacher: Tensor,
    *,
    match: QueryMatch,
    metric: str = 'giou',
) -> tuple[Tensor, Tensor]:
    """Return the mean L1 distance and the mean 1 - GIoU of matched boxes.

    Args:
        student: (B, N, 4), normalised cx, cy, w, h; lines (B, N, R) with the
            metric 'strip', whose L1 distance is the mean over the rows.
        teacher: (B, K, 4) or (B, K, R); gets no gradient.
        match: Pairs of queries; without any both are 0.
        metric: See ``matching``.
    """
    if not len(match):
        zero = student.float().sum() * 0.0
        return zero, zero
    boxes = match.of_student(student).float()
    target = match.of_teacher(teacher.detach()).float()
    if metric == 'strip':
        apart = row_distance(boxes, target)
        return apart.mean(), (1 - strip_similarity(boxes, target)).mean()
    giou = corner_giou(to_corners(boxes), to_corners(target))
    l1 = (boxes - target).abs().sum(dim=-1)
    return l1.mean(), (1 - giou).mean()


class MatchedAgreement(NamedTuple):
    """Disagreement of matched queries, averaged over the pairs.

    Args:
        l1: L1 distance of the normalised boxes.
        giou: 1 - GIoU.
        kl: KL divergence of the classes, teacher from student.
    """

    l1: Tensor
    giou: Tensor
    kl: Tensor


def matched_agreement(
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    match: QueryMatch,
    use_sigmoid: bool,
) -> MatchedAgreement:
    """Return the disagreement of matched queries in boxes and classes.

    Args:
        student_boxes: See :func:`box_distances`.
        teacher_boxes: See :func:`box_distances`.
        student_logits: See :func:`matched_divergence`.
        teacher_logits: See :func:`matched_divergence`.
        match: Pairs of queries; without any all terms are 0.
        use_sigmoid: See :func:`class_divergence`.
    """
    l1, giou = box_distances(student_boxes, teacher_boxes, match=match)
    kl = matched_divergence(
        student_logits, teacher_logits, match=match, use_sigmoid=use_sigmoid
    )
    return MatchedAgreement(l1=l1, giou=giou, kl=kl)


def check_metric(metric: str, adapter: Any) -> None:
    """Refuse a metric of boxes for lines, and one of lines for boxes.

    Args:
        metric: See ``matching``.
        adapter: With ``lines = True`` its ``box`` outputs are lines.

    Raises:
        ValueError: If they don't fit.
    """
    lines = bool(getattr(adapter, 'lines', False))
    if (metric == 'strip') != lines:
        kind, other = ('lines', "'strip'") if lines else ('boxes', "'giou'")
        raise ValueError(
            f'metric={metric!r}: the queries of {type(adapter).__name__} are '
            f'{kind}: set metric={other}'
        )


def compare_channels(
    student: Heads, teacher: Heads, *, kind: str, layers: tuple[int, int]
) -> None:
    """Refuse another teacher whose outputs differ in size.

    Args:
        student: Named outputs.
        teacher: Those of the other teacher.
        kind: Outputs to compare, 'attended' or 'cls'.
        layers: A layer of the student and one of the teacher.

    Raises:
        ValueError: If their last dimensions differ.
    """
    sizes = [
        heads[f'{kind}.{layer}'].shape[-1]
        for heads, layer in zip((student, teacher), layers, strict=True)
        if f'{kind}.{layer}' in heads
    ]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"the teacher's {kind} has {sizes[1]} channels, the student's "
            f'{sizes[0]}: choose a teacher of the same size, or set its '
            'weight to 0'
        )


def compare_teachers(
    student: Heads,
    teacher: Heads,
    *,
    layers: tuple[int, int],
    adapters: tuple[Any, Any],
    attended: bool,
    classes: bool,
) -> None:
    """Refuse another teacher whose outputs cannot be compared.

    Args:
        student: Named outputs.
        teacher: Those of the other teacher.
        layers: A layer of the student and one of the teacher.
        adapters: Adapters of the student and of the teacher.
        attended: Whether co-attended features are compared.
        classes: Whether class logits are compared.

    Raises:
        ValueError: If sizes differ, or only one has a softmax over classes.
    """
    if attended:
        compare_channels(student, teacher, kind='attended', layers=layers)
    if not classes:
        return
    compare_channels(student, teacher, kind='cls', layers=layers)
    first, second = (getattr(a, 'use_sigmoid', True) for a in adapters)
    if first != second:
        raise ValueError(
            'teacher and student differ in their class activation, softmax '
            'and sigmoid: set class_weight=0'
        )
