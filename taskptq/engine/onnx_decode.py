"""From raw outputs to predictions without the host, for simple heads.

``*_decoding`` describe a head in plain values, which an exported file carries;
``decode`` follows such a description with numpy alone. Heads that need more
than this are decoded by the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    'anchor_decoding',
    'class_decoding',
    'decode',
    'decodes',
    'point_decoding',
]

Array = NDArray[Any]
# exp() of a larger size delta means a box outside of any image: the limit of
# the delta coders, log(1000 / 16).
MAX_RATIO = float(np.log(1000 / 16))


# Outputs that each kind decodes; a head with more needs its host.
OUTPUTS = {
    'anchors': {'cls_scores', 'bbox_preds'},
    'points': {'cls_scores', 'bbox_preds', 'objectnesses'},
    'classes': {'seg_logits'},
    'boxes': {'boxes', 'scores', 'labels'},
}


def decodes(settings: Mapping[str, Any], outputs: Iterable[str]) -> bool:
    """Whether a description covers all outputs of a network.

    Args:
        settings: Description of the head.
        outputs: Names of the outputs, with their levels.
    """
    groups = {name.partition('.')[0] for name in outputs}
    return groups == OUTPUTS[settings['kind']]


def anchor_decoding(head: Any) -> dict[str, Any] | None:
    """Describe a head of anchors and box deltas; None if it is another.

    Args:
        head: ``bbox_head`` of a detector.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.task_modules import DeltaXYWHBBoxCoder

    coder = getattr(head, 'bbox_coder', None)
    priors = getattr(head, 'prior_generator', None)
    if (
        type(head).predict_by_feat is not BaseDenseHead.predict_by_feat
        or type(coder) is not DeltaXYWHBBoxCoder
        or coder.add_ctr_clamp
        or not hasattr(priors, 'base_anchors')
        or not head.use_sigmoid_cls
    ):
        return None
    nms = nms_settings(head.test_cfg)
    return nms and {
        'kind': 'anchors',
        'num_classes': int(head.cls_out_channels),
        'strides': [list(map(int, stride)) for stride in priors.strides],
        'anchors': [base.tolist() for base in priors.base_anchors],
        'means': list(map(float, coder.means)),
        'stds': list(map(float, coder.stds)),
        **nms,
    }


def point_decoding(head: Any) -> dict[str, Any] | None:
    """Describe a head of points with objectness; None if it is another."""
    from mmdet.models.dense_heads import YOLOXHead

    if (
        not isinstance(head, YOLOXHead)
        or type(head).predict_by_feat is not YOLOXHead.predict_by_feat
        or type(head)._bbox_decode is not YOLOXHead._bbox_decode
    ):
        return None
    nms = nms_settings(head.test_cfg)
    priors = head.prior_generator
    return nms and {
        'kind': 'points',
        'num_classes': int(head.cls_out_channels),
        'strides': [list(map(int, stride)) for stride in priors.strides],
        'offset': float(priors.offset),
        **nms,
    }


def class_decoding(model: Any) -> dict[str, Any] | None:
    """Describe a segmentor whose label is the class of highest logit."""
    if model.out_channels == 1:
        return None
    return {
        'kind': 'classes',
        'num_classes': int(model.out_channels),
        'align_corners': bool(model.align_corners),
    }


def nms_settings(test_cfg: Any) -> dict[str, Any] | None:
    """Return the settings of plain NMS; None if it is of another kind."""
    cfg = test_cfg or {}
    nms = cfg.get('nms') or {}
    if nms.get('type') != 'nms':
        return None
    return {
        'min_size': float(cfg.get('min_bbox_size', -1)),
        'score_thr': float(cfg.get('score_thr', 0)),
        'nms_pre': int(cfg.get('nms_pre', -1)),
        'iou_threshold': float(nms['iou_threshold']),
        'max_per_image': int(cfg.get('max_per_img', -1)),
    }


def decode(
    outputs: Mapping[str, Array],
    settings: Mapping[str, Any],
    *,
    image_shape: tuple[int, int],
    scale: tuple[float, float],
    padded_shape: tuple[int, int],
    original_shape: tuple[int, int],
) -> dict[str, Array]:
    """Decode the outputs of one image.

    Args:
        outputs: Raw outputs by name, batch of one.
        settings: Description of the head.
        image_shape: Height and width of the resized image, without padding.
        scale: Resized width and height, each over the original.
        padded_shape: Height and width of the network's input.
        original_shape: Height and width of the original image.

    Returns:
        ``boxes`` (N, 4) in pixels of the original image, ``scores`` (N,) and
        ``labels`` (N,), best first; of a segmentor ``label_map``, (H, W).

    Raises:
        ValueError: If the description is of no known kind.
    """
    kind = settings.get('kind')
    if kind == 'classes':
        logits = next(iter(outputs.values()))[0]
        corners = bool(settings.get('align_corners'))
        # As the host does: to the input, without padding, to the original.
        logits = resize(logits, padded_shape, align_corners=corners)
        logits = logits[:, : image_shape[0], : image_shape[1]]
        logits = resize(logits, original_shape, align_corners=corners)
        return {'label_map': logits.argmax(axis=0).astype(np.uint8)}
    if kind == 'anchors':
        boxes, scores, labels = from_anchors(outputs, settings, image_shape)
    elif kind == 'points':
        boxes, scores, labels = from_points(outputs, settings)
    elif kind == 'boxes':
        shape = image_shape if settings.get('clip') else None
        return original_boxes(outputs, image_shape=shape, scale=scale)
    else:
        raise ValueError(
            f'the file describes a head of the kind {kind!r}, which is not '
            'known here: give its config'
        )
    boxes = boxes / np.array([*scale, *scale], dtype=np.float32)
    if settings['min_size'] >= 0:
        large = (boxes[:, 2:] - boxes[:, :2] > settings['min_size']).all(1)
        boxes, scores, labels = boxes[large], scores[large], labels[large]
    kept = nms(boxes, scores, labels, iou_threshold=settings['iou_threshold'])
    if settings['max_per_image'] > 0:
        kept = kept[: settings['max_per_image']]
    return {
        'boxes': boxes[kept],
        'scores': scores[kept],
        'labels': labels[kept],
    }


def original_boxes(
    outputs: Mapping[str, Array],
    *,
    image_shape: tuple[int, int] | None,
    scale: tuple[float, float],
) -> dict[str, Array]:
    """Return boxes of a file that decodes, in pixels of the original.

    Args:
        outputs: ``boxes``, ``scores`` and ``labels``, best first.
        image_shape: Height and width that boxes end with, or None.
        scale: As in :func:`decode`.
    """
    found = dict(outputs)
    if image_shape is not None:
        height, width = image_shape
        boxes = found['boxes'].clip(
            0, np.array([width, height] * 2, np.float32)
        )
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        found = {
            name: v[kept] for name, v in {**found, 'boxes': boxes}.items()
        }
    found['boxes'] = found['boxes'] / np.array([*scale, *scale], np.float32)
    return found


def levels(outputs: Mapping[str, Array], name: str) -> list[Array]:
    """Return the maps of an output, finest first, (C, H, W) each."""
    found = []
    while f'{name}.{len(found)}' in outputs:
        found.append(outputs[f'{name}.{len(found)}'][0])
    return found


def rows(values: Array, *, width: int) -> Array:
    """Reshape a map, (A * width, H, W), to (H * W * A, width)."""
    return values.transpose(1, 2, 0).reshape(-1, width)


def sigmoid(values: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow."""
    result: Array = np.exp(-np.logaddexp(0, -values))
    return result


def grid(values: Array, stride: list[int], *, offset: float = 0.0) -> Array:
    """Return x and y of each cell of a map in pixels, (H * W, 2)."""
    height, width = values.shape[-2:]
    x = (np.arange(width, dtype=np.float32) + offset) * stride[0]
    y = (np.arange(height, dtype=np.float32) + offset) * stride[1]
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def from_anchors(
    outputs: Mapping[str, Array],
    settings: Mapping[str, Any],
    image_shape: tuple[int, int],
) -> tuple[Array, Array, Array]:
    """Decode anchors and deltas (Faster R-CNN, eq. 2; RetinaNet, sec. 4).

    Returns:
        Boxes in pixels of the network's input, scores and labels.
    """
    found: list[tuple[Array, Array, Array]] = []
    for scores, deltas, stride, base in zip(
        levels(outputs, 'cls_scores'),
        levels(outputs, 'bbox_preds'),
        settings['strides'],
        settings['anchors'],
        strict=True,
    ):
        shift = np.tile(grid(scores, stride), 2)[:, None]
        anchors = (shift + np.array(base, np.float32)).reshape(-1, 4)
        confidence = sigmoid(rows(scores, width=settings['num_classes']))
        row, label, score = best_scores(confidence, settings)
        boxes = deltas_to_boxes(
            rows(deltas, width=4)[row], anchors[row], settings
        )
        found.append((boxes, score, label))
    boxes, scores, labels = (
        np.concatenate(p) for p in zip(*found, strict=True)
    )
    height, width = image_shape
    boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
    return boxes, scores, labels


def best_scores(
    confidence: Array, settings: Mapping[str, Any]
) -> tuple[Array, Array, Array]:
    """Return row, class and score of the best entries of one level."""
    row, label = np.nonzero(confidence > settings['score_thr'])
    score = confidence[row, label]
    order = np.argsort(-score, kind='stable')
    if settings['nms_pre'] > 0:
        order = order[: settings['nms_pre']]
    return row[order], label[order], score[order]


def deltas_to_boxes(
    deltas: Array, anchors: Array, settings: Mapping[str, Any]
) -> Array:
    """Apply box deltas to anchors, both (N, 4)."""
    deltas = deltas * np.array(settings['stds'], np.float32) + np.array(
        settings['means'], np.float32
    )
    size = anchors[:, 2:] - anchors[:, :2]
    center = (anchors[:, :2] + anchors[:, 2:]) / 2 + deltas[:, :2] * size
    half = size * np.exp(deltas[:, 2:].clip(-MAX_RATIO, MAX_RATIO)) / 2
    return np.concatenate([center - half, center + half], axis=1)


def from_points(
    outputs: Mapping[str, Array], settings: Mapping[str, Any]
) -> tuple[Array, Array, Array]:
    """Decode points, sizes and objectness (YOLOX, sec. 2.1)."""
    found: list[tuple[Array, ...]] = []
    for scores, boxes, objectness, stride in zip(
        levels(outputs, 'cls_scores'),
        levels(outputs, 'bbox_preds'),
        levels(outputs, 'objectnesses'),
        settings['strides'],
        strict=True,
    ):
        points = grid(scores, stride, offset=settings['offset'])
        raw = rows(boxes, width=4)
        step = np.array(stride, np.float32)
        center = raw[:, :2] * step + points
        half = np.exp(raw[:, 2:]) * step / 2
        confidence = sigmoid(rows(scores, width=settings['num_classes']))
        score = confidence.max(axis=1) * sigmoid(
            rows(objectness, width=1)[:, 0]
        )
        found.append(
            (
                np.concatenate([center - half, center + half], axis=1),
                score,
                confidence.argmax(axis=1),
            )
        )
    boxes, scores, labels = (
        np.concatenate(p) for p in zip(*found, strict=True)
    )
    kept = scores >= settings['score_thr']
    return boxes[kept], scores[kept], labels[kept]


def nms(
    boxes: Array, scores: Array, labels: Array, *, iou_threshold: float
) -> Array:
    """Return the indices that greedy NMS of each class keeps, best first."""
    order = np.argsort(-scores, kind='stable')
    area = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = (high - low).clip(0).prod(axis=1)
        union = area[best] + area[rest] - shared
        iou = shared / np.maximum(union, 1e-12)
        order = rest[(iou <= iou_threshold) | (labels[rest] != labels[best])]
    return np.array(kept, dtype=np.int64)


def resize(
    maps: Array, shape: tuple[int, int], *, align_corners: bool = False
) -> Array:
    """Interpolate maps, (C, h, w), bilinearly to (C, *shape)."""
    for axis, size in ((1, shape[0]), (2, shape[1])):
        old = maps.shape[axis]
        if align_corners:
            place = np.linspace(0, old - 1, size)
        else:
            place = ((np.arange(size) + 0.5) * old / size - 0.5).clip(0)
        low = np.minimum(place.astype(int), old - 1)
        high = np.minimum(low + 1, old - 1)
        share = (place - low).astype(np.float32)
        if axis == 1:
            share = share[:, None]
        maps = (
            np.take(maps, low, axis) * (1 - share)
            + np.take(maps, high, axis) * share
        )
    return maps
