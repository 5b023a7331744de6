"""Find the foreground queries of a DETR and their partners.

Foreground-aware query matching (FQM) of Q-DETR, Xu et al., CVPR 2023
(arXiv 2304.00253), equations 10 to 12. Where the paper is silent or wrong,
the choices are:

* a query is kept if it is close to *some* ground truth (the printed "for
  all" contradicts the sentence before it);
* the threshold is never below 0, as ``tau G_i`` exceeds ``G_i`` for
  ``G_i < 0``;
* the partner is the best teacher query (the printed sum over k is an error);
  ``one_to_one`` does what the text promises.

All boxes here are (cx, cy, w, h), normalised by the image size. With the
metric 'strip', queries have lines instead: x at R rows, normalised by the
image's width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskptq.methods.box_grid.wasserstein import wasserstein_similarity

__all__ = [
    'METRICS',
    'QueryMatch',
    'all_queries',
    'foreground_queries',
    'giou_matrix',
    'match_queries',
    'nwd_matrix',
    'similarity_matrix',
    'strip_similarity',
    'teacher_partners',
    'to_corners',
]

METRICS = ('giou', 'nwd', 'strip')
# Width of the strips that lines are compared as, in widths of the image.
# Neighbouring lanes are about 0.2 apart on average over the rows: strips half
# as wide don't touch, and a lane that quantization moved by several times its
# painted width still finds its partner.
STRIP_WIDTH = 0.1
SMALLEST_AREA = 1e-12

ImageSize = tuple[float, float]


def to_corners(boxes: Tensor) -> Tensor:
    """Turn (cx, cy, w, h) into (x1, y1, x2, y2), at least float32.

    Args:
        boxes: (..., 4).
    """
    wide = boxes if boxes.dtype == torch.float64 else boxes.float()
    center, size = wide[..., :2], wide[..., 2:4]
    return torch.cat([center - size / 2, center + size / 2], dim=-1)


def giou_matrix(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """Return the generalised IoU of all pairs (Rezatofighi et al., 2019).

    Args:
        boxes_a: (M, 4).
        boxes_b: (N, 4).

    Returns:
        (M, N) in [-1, 1], with gradient.
    """
    one, two = to_corners(boxes_a)[:, None], to_corners(boxes_b)[None]
    return corner_giou(one, two)


def corner_giou(one: Tensor, two: Tensor) -> Tensor:
    """Return the generalised IoU of corner boxes that broadcast, (..., 4)."""
    low = torch.maximum(one[..., :2], two[..., :2])
    high = torch.minimum(one[..., 2:], two[..., 2:])
    shared = _area(low, high)
    united = _area(one[..., :2], one[..., 2:])
    united = united + _area(two[..., :2], two[..., 2:]) - shared
    hull = _area(
        torch.minimum(one[..., :2], two[..., :2]),
        torch.maximum(one[..., 2:], two[..., 2:]),
    )
    iou = shared / united.clamp(min=SMALLEST_AREA)
    return iou - (hull - united) / hull.clamp(min=SMALLEST_AREA)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=-1)


def nwd_matrix(
    boxes_a: Tensor,
    boxes_b: Tensor,
    *,
    image_size: ImageSize,
    constant: float = 12.8,
) -> Tensor:
    """Return the normalised Wasserstein similarity of all pairs.

    For tiny objects: the GIoU of a 6-pixel box collapses with a shift of 2.

    Args:
        boxes_a: (M, 4).
        boxes_b: (N, 4).
        image_size: Height and width in pixels that the boxes are
            normalised by.
        constant: C in pixels, see ``wasserstein_similarity``.

    Returns:
        (M, N) in (0, 1].
    """
    height, width = image_size
    corners = [
        boxes.new_tensor([width, height, width, height]) * to_corners(boxes)
        for boxes in (boxes_a, boxes_b)
    ]
    return wasserstein_similarity(*corners, constant=constant)


def strip_similarity(one: Tensor, two: Tensor) -> Tensor:
    """Return the generalised IoU of lines drawn as strips.

    Two strips of width w whose centers are d apart have the GIoU
    ``(w - d) / (w + d)`` in each row, wherever they lie; d is the mean
    ``|dx|`` over the rows.

    Args:
        one: Lines that broadcast to the others, (..., R).
        two: (..., R).

    Returns:
        (...), in (-1, 1], with gradient.
    """
    apart = row_distance(one, two)
    return (STRIP_WIDTH - apart) / (STRIP_WIDTH + apart)


def row_distance(one: Tensor, two: Tensor) -> Tensor:
    """Return the mean |dx| over the rows of lines, (..., R) -> (...)."""
    return (one.float() - two.float()).abs().mean(dim=-1)


def similarity_matrix(
    boxes_a: Tensor,
    boxes_b: Tensor,
    *,
    metric: str = 'giou',
    image_size: ImageSize | None = None,
) -> Tensor:
    """Return the similarity of all pairs of boxes, (M, N), at most 1.

    Args:
        boxes_a: (M, 4), or lines (M, R).
        boxes_b: (N, 4), or lines (N, R).
        metric: 'giou' or 'nwd', or 'strip' of lines.
        image_size: Height and width in pixels; 'nwd' needs it.

    Raises:
        ValueError: If the metric is unknown or lacks the image size.
    """
    if metric == 'giou':
        return giou_matrix(boxes_a, boxes_b)
    if metric == 'strip':
        return strip_similarity(boxes_a[:, None], boxes_b[None])
    if metric != 'nwd':
        raise ValueError(f'metric={metric!r}: choose one of {METRICS}')
    if image_size is None:
        raise ValueError(
            "metric='nwd' compares pixels: give image_size=(height, width)"
        )
    return nwd_matrix(boxes_a, boxes_b, image_size=image_size)


@torch.no_grad()
def foreground_queries(
    student_boxes: Tensor,
    gt_boxes: Tensor,
    *,
    tau: float = 0.6,
    metric: str = 'giou',
    image_size: ImageSize | None = None,
) -> Tensor:
    """Find the student queries close to a ground truth (eq. 10, 11).

    ``G_i = max_j sim(gt_i, student_j)``; query j is kept if for some i
    ``sim(gt_i, student_j) > tau max(G_i, 0)``.

    Args:
        student_boxes: (N, 4).
        gt_boxes: (G, 4); without any, no query is kept.
        tau: Threshold in [0, 1]; 1 keeps none.
        metric: 'giou' or 'nwd'.
        image_size: Height and width in pixels; 'nwd' needs it.

    Returns:
        (N,), bool.

    Raises:
        ValueError: If ``tau`` or the metric is invalid.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f'tau={tau} must lie in [0, 1]')
    if not len(gt_boxes) or not len(student_boxes):
        return torch.zeros(
            len(student_boxes), dtype=torch.bool, device=student_boxes.device
        )
    near = similarity_matrix(
        gt_boxes, student_boxes, metric=metric, image_size=image_size
    )
    best = near.amax(dim=1, keepdim=True).clamp(min=0)  # G x 1
    return (near > tau * best).any(dim=0)


@torch.no_grad()
def teacher_partners(
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    *,
    mu1: float = 2.0,
    mu2: float = 5.0,
    metric: str = 'giou',
    one_to_one: bool = False,
    image_size: ImageSize | None = None,
) -> Tensor:
    """Return the teacher query that each student query learns from (eq. 12).

    The k of the largest ``mu1 sim(b_j, b_k) - mu2 |b_j - b_k|_1``.

    Args:
        student_boxes: (M, 4), boxes of the kept queries.
        teacher_boxes: (K, 4), boxes of all teacher queries.
        mu1: Weight of the similarity.
        mu2: Weight of the L1 distance of the normalised boxes.
        metric: 'giou' or 'nwd'.
        one_to_one: Use each teacher query at most once, maximizing the sum
            (needs scipy).
        image_size: Height and width in pixels; 'nwd' needs it.

    Returns:
        (M,) of int64; -1 without a partner, which happens only if
        ``one_to_one`` meets fewer teacher than student queries.

    Raises:
        ValueError: If the teacher has no queries, or the metric is invalid.
    """
    if not len(teacher_boxes):
        raise ValueError('teacher_boxes is empty: the teacher has no queries')
    near = similarity_matrix(
        student_boxes, teacher_boxes, metric=metric, image_size=image_size
    )
    pairs = student_boxes[:, None].float(), teacher_boxes[None].float()
    # Not cdist: the L1 distance of equal small boxes must be exactly 0.
    apart = (
        row_distance(*pairs)
        if metric == 'strip'
        else (pairs[0] - pairs[1]).abs().sum(dim=-1)
    )
    score = mu1 * near - mu2 * apart
    if not one_to_one:
        return score.argmax(dim=1)
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(score.cpu().numpy(), maximize=True)
    partners = torch.full((len(student_boxes),), -1, dtype=torch.int64)
    partners[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return partners.to(student_boxes.device)


@dataclass(frozen=True, kw_only=True)
class QueryMatch:
    """Pairs of queries in a batch, as indices into (B, N).

    Args:
        image: (P,), image of each pair.
        student: (P,), query of the student.
        teacher: (P,), query of the teacher.
        counts: Number of pairs of each of the B images.
    """

    image: Tensor
    student: Tensor
    teacher: Tensor
    counts: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.image)

    def of_student(self, values: Tensor) -> Tensor:
        """Pick the pairs' rows of the student's (B, N, ...), -> (P, ...)."""
        return values[self.image, self.student]

    def of_teacher(self, values: Tensor) -> Tensor:
        """Pick the pairs' rows of the teacher's (B, K, ...), -> (P, ...)."""
        return values[self.image, self.teacher]


@torch.no_grad()
def match_queries(
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    gt_boxes: Sequence[Tensor],
    *,
    tau: float = 0.6,
    mu1: float = 2.0,
    mu2: float = 5.0,
    metric: str = 'giou',
    one_to_one: bool = False,
    image_sizes: Sequence[ImageSize] | None = None,
) -> QueryMatch:
    """Match the foreground queries of a batch, image by image.

    Args:
        student_boxes: (B, N, 4).
        teacher_boxes: (B, K, 4).
        gt_boxes: (G_b, 4) for each image; images without any are skipped.
        tau: See :func:`foreground_queries`.
        mu1: See :func:`teacher_partners`.
        mu2: See :func:`teacher_partners`.
        metric: 'giou' or 'nwd'.
        one_to_one: See :func:`teacher_partners`.
        image_sizes: Height and width of each image in pixels, for 'nwd'.

    Raises:
        ValueError: See :func:`foreground_queries`,
            :func:`teacher_partners`.
    """
    students: list[Tensor] = []
    teachers: list[Tensor] = []
    for number, truths in enumerate(gt_boxes):
        size = None if image_sizes is None else image_sizes[number]
        boxes = student_boxes[number]
        kept = foreground_queries(
            boxes, truths, tau=tau, metric=metric, image_size=size
        )
        student = kept.nonzero()[:, 0]
        partner = student
        if len(student):
            partner = teacher_partners(
                boxes[student],
                teacher_boxes[number],
                mu1=mu1,
                mu2=mu2,
                metric=metric,
                one_to_one=one_to_one,
                image_size=size,
            )
        students.append(student[partner >= 0])
        teachers.append(partner[partner >= 0])
    counts = tuple(len(student) for student in students)
    repeats = torch.as_tensor(counts, device=student_boxes.device)
    return QueryMatch(
        image=torch.arange(
            len(counts), device=student_boxes.device
        ).repeat_interleave(repeats),
        student=torch.cat(students),
        teacher=torch.cat(teachers),
        counts=counts,
    )


def all_queries(boxes: Tensor) -> QueryMatch:
    """Pair every query of (B, N, 4) with the teacher's of the same index."""
    images, queries = boxes.shape[:2]
    every = torch.arange(images * queries, device=boxes.device)
    index = every % queries
    return QueryMatch(
        image=every // queries,
        student=index,
        teacher=index,
        counts=(queries,) * images,
    )
