"""Compare the boxes of two models, image by image.

Average precision on a few hundred images moves by chance. Two measures say
more: a bootstrap over images, paired because both models see each draw, and
the agreement of a model's boxes with the float model's, which needs no
labels. Matching is pycocotools'.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    'Detections',
    'Matches',
    'average_precision',
    'bootstrap_ratio',
    'coco_of_boxes',
    'match_boxes',
    'read_boxes',
    'write_boxes',
]

SCHEMA = 'taskptq.boxes.v1'
RECALLS = np.linspace(0, 1, 101)
MAX_DETECTIONS = 100
# Rows of COCO results: image_id, bbox (x, y, w, h), score, category_id.
Detections = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Detections of one class in all images, best score first.

    Args:
        image: Index of the image of each detection, (D,).
        hit: Whether it matched at each IoU, (T, D).
        counted: Whether it counts at each IoU, (T, D); matches of crowds
            don't.
        positives: Annotated boxes of each image, (I,).
    """

    image: np.ndarray
    hit: np.ndarray
    counted: np.ndarray
    positives: np.ndarray


def write_boxes(boxes: Detections, path: str | Path) -> None:
    """Write detections in COCO's form as JSON; makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {'schema': SCHEMA, 'boxes': [dict(box) for box in boxes]}
    path.write_text(json.dumps(content, allow_nan=False), encoding='utf-8')


def read_boxes(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of :func:`write_boxes`.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'there is no file {path}: run BoxDump on the float model first'
        )
    content = json.loads(path.read_text(encoding='utf-8'))
    if not isinstance(content, dict) or content.get('schema') != SCHEMA:
        raise ValueError(f'{path} holds no boxes written by BoxDump')
    boxes: list[dict[str, Any]] = content['boxes']
    return boxes


def coco_of_boxes(
    boxes: Detections, *, image_ids: Sequence[int], min_score: float
) -> Any:
    """Return a COCO data set whose annotations are confident detections.

    Args:
        boxes: Detections of the reference model.
        image_ids: All images, with or without detections.
        min_score: Least score of a box that counts as annotation.
    """
    from pycocotools.coco import COCO

    kept = [box for box in boxes if box['score'] >= min_score]
    annotations = [
        {
            'id': index,
            'image_id': box['image_id'],
            'category_id': box['category_id'],
            'bbox': box['bbox'],
            'area': box['bbox'][2] * box['bbox'][3],
            'iscrowd': 0,
        }
        for index, box in enumerate(kept, start=1)
    ]
    coco = COCO()
    coco.dataset = {
        'images': [{'id': image} for image in image_ids],
        'categories': [
            {'id': category}
            for category in sorted({box['category_id'] for box in boxes})
        ],
        'annotations': annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def match_boxes(
    coco: Any, boxes: Detections, *, image_ids: Sequence[int]
) -> list[Matches]:
    """Match detections with annotations, all sizes, 100 per image.

    Args:
        coco: pycocotools' COCO with the annotations.
        boxes: Detections.
        image_ids: Images to look at; results follow their order.

    Returns:
        One entry per class with annotations.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        # COCO.loadRes fails on an empty list.
        found = coco.loadRes([dict(box) for box in boxes]) if boxes else COCO()
        evaluation = COCOeval(coco, found, 'bbox')
        params = evaluation.params
        params.imgIds = list(image_ids)
        params.areaRng, params.areaRngLbl = [[0, 1e10]], ['all']
        params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
    # pycocotools sorts the images.
    position = {image: index for index, image in enumerate(image_ids)}
    order = [position[image] for image in evaluation.params.imgIds]
    size = len(order)
    matches = [
        _of_class(evaluation.evalImgs[start : start + size], order=order)
        for start in range(0, len(evaluation.evalImgs), size)
    ]
    return [one for one in matches if one.positives.any()]


def _of_class(
    images: Sequence[Mapping[str, Any] | None], *, order: Sequence[int]
) -> Matches:
    """Join pycocotools' results of one class over the images."""
    positives = np.zeros(len(order), dtype=np.int64)
    scores, image, hit, counted = [np.zeros(0)], [], [], []
    for index, found in zip(order, images, strict=True):
        if found is None:
            continue
        positives[index] = np.count_nonzero(np.asarray(found['gtIgnore']) == 0)
        ignored = np.asarray(found['dtIgnore'], dtype=bool)
        scores.append(np.asarray(found['dtScores'], dtype=np.float64))
        image.append(np.full(ignored.shape[1], index))
        hit.append(np.asarray(found['dtMatches']) > 0)
        counted.append(~ignored)
    best_first = np.argsort(-np.concatenate(scores), kind='mergesort')
    empty = np.zeros((1, 0), dtype=bool)
    return Matches(
        image=np.concatenate([*image, np.zeros(0, dtype=np.int64)])[
            best_first
        ].astype(np.int64),
        hit=np.concatenate(hit or [empty], axis=1)[:, best_first],
        counted=np.concatenate(counted or [empty], axis=1)[:, best_first],
        positives=positives,
    )


def average_precision(
    matches: Sequence[Matches], *, counts: np.ndarray | None = None
) -> np.ndarray:
    """Return COCO's AP over all IoUs and classes, for draws of images.

    Args:
        matches: From :func:`match_boxes`, T IoUs.
        counts: How often each of I images occurs in each of B draws, (B, I);
            None is each image once.

    Returns:
        AP in [0, 1] of each draw, (B,). Classes that a draw lacks don't
        count; nan if it lacks all.
    """
    if counts is None:
        size = len(matches[0].positives) if matches else 0
        counts = np.ones((1, size), dtype=np.int64)
    totals = np.zeros(len(counts))
    classes = np.zeros(len(counts))
    for one in matches:
        value, present = _class_precision(one, counts=counts)
        totals += value
        classes += present
    with np.errstate(invalid='ignore'):
        found: np.ndarray = totals / np.where(classes > 0, classes, np.nan)
    return found


def _class_precision(
    one: Matches, *, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return one class's AP in each draw, and whether the draw has it."""
    positives = counts @ one.positives
    present = positives > 0
    weights = counts[:, one.image]
    value = np.zeros(len(counts))
    if not one.image.size:
        return value, present
    for hit, counted in zip(one.hit, one.counted, strict=True):
        true = np.cumsum(weights * (hit & counted), axis=1)
        false = np.cumsum(weights * (~hit & counted), axis=1)
        precision = true / np.maximum(true + false, 1)
        # Highest precision at this recall or a higher one.
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = true / np.maximum(positives, 1)[:, None]
        for draw in np.flatnonzero(present):
            at = np.searchsorted(recall[draw], RECALLS, side='left')
            reached = at[at < recall.shape[1]]
            value[draw] += envelope[draw, reached].sum() / RECALLS.size
    return value / len(one.hit), present


def bootstrap_ratio(
    matches: Sequence[Matches],
    reference: Sequence[Matches],
    *,
    num_draws: int = 200,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the 95 % interval of AP over the reference's AP.

    Images are drawn with replacement, the same for both models.

    Args:
        matches: Matches of the model.
        reference: Matches of the reference, on the same images.
        num_draws: Draws of the bootstrap.
        seed: Seed of the draws.
    """
    size = len(reference[0].positives) if reference else 0
    drawn = np.random.default_rng(seed).multinomial(
        size, np.full(size, 1 / max(size, 1)), size=num_draws
    )
    with np.errstate(divide='ignore', invalid='ignore'):
        ratios = average_precision(matches, counts=drawn) / average_precision(
            reference, counts=drawn
        )
    finite = ratios[np.isfinite(ratios)]
    if not finite.size:
        return float('nan'), float('nan')
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
