"""Metrics of prompted masks and of trivial masks for the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from torch import Tensor

from .mask_ap import encode_masks, mask_average_precision

__all__ = [
    'InstanceCocoMetric',
    'PromptedMaskMetric',
    'ellipse_masks',
    'filled_boxes',
    'match_boxes',
    'paired_iou',
]

# A detection does not know its object.
DETECTED = 'detector'
DIGITS = 4


@METRICS.register_module()
class InstanceCocoMetric(CocoMetric):
    """CocoMetric that returns 0 for a model without predictions.

    mmdet's returns an empty dict, and badly quantized models do predict
    nothing.
    """

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Compute the metrics; missing ones are 0."""
        found = dict(super().compute_metrics(results))
        if self.format_only:
            return found
        items = self.metric_items or [
            'mAP',
            'mAP_50',
            'mAP_75',
            'mAP_s',
            'mAP_m',
            'mAP_l',
        ]
        for kind in self.metrics:
            if kind in ('bbox', 'segm'):
                for item in items:
                    found.setdefault(f'{kind}_{item}', 0.0)
        return found


@METRICS.register_module()
class PromptedMaskMetric(BaseMetric):
    """Mean IoU of prompted masks with the annotated ones.

    For prompts from annotations, mask i belongs to object i:

    - ``miou``: mean over all objects of the mask's IoU;
    - ``miou_box``, ``miou_ellipse``: the same for two trivial masks, the
      filled box of the object and the ellipse inscribed in it;
    - ``segm_mAP``, ``segm_mAP_50``, ``segm_mAP_75``: COCO's mask AP.

    For a detector's prompts, detections are first matched to objects of
    their class, best score first, each to the free object of highest box IoU
    if that reaches ``iou_thr``:

    - ``matched_miou``: mean mask IoU over the matched pairs;
    - ``matched_miou_box``, ``matched_miou_ellipse``: the same for the trivial
      masks of the detected box;
    - ``recall``: share of the objects that were matched;
    - ``miou``: mean over all objects; unmatched ones count 0.

    Args:
        prompts: One kind of the model's ``prompts``.
        mask_ap: Also compute mask AP, for prompts from annotations.
        score: Score of the masks for AP: ``iou`` (predicted) or ``one``.
        iou_thr: Minimum box IoU of a match.
        collect_device: See BaseMetric.
        prefix: Prefix of the results' names; None is ``prompts``.

    Raises:
        ValueError: If ``score`` is unknown.
    """

    def __init__(
        self,
        prompts: str = 'gt_box',
        *,
        mask_ap: bool = True,
        score: str = 'iou',
        iou_thr: float = 0.5,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(
            collect_device=collect_device, prefix=prefix or prompts
        )
        if score not in ('iou', 'one'):
            raise ValueError(f"score={score!r}: choose 'iou' or 'one'")
        self.prompts = prompts
        self.detected = prompts == DETECTED
        self.mask_ap = mask_ap and not self.detected
        self.score = score
        self.iou_thr = iou_thr

    def process(
        self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]
    ) -> None:
        """Compare the masks of a batch with the annotations.

        Raises:
            ValueError: If predictions or annotated masks are missing.
        """
        del data_batch
        for sample in data_samples:
            self.results.append(self.compare(sample))

    def compare(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the contribution of one image."""
        truth = annotated_masks(sample)
        labels = as_array(sample['gt_instances']['labels'])
        predicted = self.predictions(sample)
        masks = as_array(predicted['masks']).astype(bool)
        boxes = as_array(predicted['bboxes'])
        if self.detected:
            gt_boxes = as_array(sample['gt_instances']['bboxes'])
            first, second = match_boxes(
                boxes,
                as_array(predicted['labels']),
                gt_boxes,
                labels,
                scores=as_array(predicted['scores']),
                iou_thr=self.iou_thr,
            )
        else:
            if len(masks) != len(truth):
                raise ValueError(
                    f'{len(masks)} masks for {len(truth)} annotated objects '
                    f'of image {sample.get("img_id")}: prompts='
                    f'{self.prompts!r} must give one for each'
                )
            first = second = np.arange(len(truth))
        shape = truth.shape[1:]
        result = {
            'objects': len(truth),
            'mask': paired_iou(masks[first], truth[second]),
            'box': paired_iou(
                filled_boxes(boxes[first], shape), truth[second]
            ),
            'ellipse': paired_iou(
                ellipse_masks(boxes[first], shape), truth[second]
            ),
        }
        if self.mask_ap:
            scores = as_array(predicted['iou']).astype(float)
            result['ap'] = {
                'shape': tuple(int(side) for side in shape),
                'labels': labels.tolist(),
                'truth': encode_masks(truth),
                'masks': encode_masks(masks),
                'scores': (
                    scores if self.score == 'iou' else np.ones_like(scores)
                ).tolist(),
            }
        return result

    def predictions(self, sample: Mapping[str, Any]) -> Any:
        """Return the predictions for this metric's prompts.

        Raises:
            ValueError: If the model made none.
        """
        prompted = sample.get('prompted') or {}
        if self.prompts not in prompted:
            raise ValueError(
                f'the model made no masks for prompts={self.prompts!r}, only '
                f'for {sorted(prompted)}: add it to the prompts of '
                'SAMDetector, and LoadAnnotations to the test pipeline'
            )
        return prompted[self.prompts]

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Average over the objects of all images."""
        ious = {
            name: np.concatenate([item[name] for item in results])
            for name in ('mask', 'box', 'ellipse')
        }
        means = {
            'miou': mean(ious['mask']),
            'miou_box': mean(ious['box']),
            'miou_ellipse': mean(ious['ellipse']),
        }
        if self.detected:
            objects = sum(item['objects'] for item in results)
            found = {f'matched_{name}': value for name, value in means.items()}
            found['recall'] = len(ious['mask']) / max(objects, 1)
            found['miou'] = float(ious['mask'].sum()) / max(objects, 1)
        else:
            found = means
        if self.mask_ap:
            found |= mask_average_precision([item['ap'] for item in results])
        return {name: round(value, DIGITS) for name, value in found.items()}


def annotated_masks(sample: Mapping[str, Any]) -> np.ndarray:
    """Return the masks of an image's annotations, (N, H, W), bool.

    Raises:
        ValueError: If they are not loaded.
    """
    instances = sample.get('gt_instances')
    if instances is None or 'masks' not in instances:
        raise ValueError(
            f'image {sample.get("img_id")} has no annotated masks: put '
            'LoadAnnotations(with_bbox=True, with_mask=True) after the Resize '
            'of the test pipeline'
        )
    masks = instances['masks']
    if isinstance(masks, Tensor):
        return as_array(masks).astype(bool)
    return masks.to_ndarray().astype(bool)


def as_array(value: Any) -> np.ndarray:
    """Return a tensor, mmdet boxes or an array as an array."""
    value = getattr(value, 'tensor', value)
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return np.asarray(value)


def mean(values: np.ndarray) -> float:
    """Return the mean, 0 for no values."""
    return float(values.mean()) if len(values) else 0.0


def paired_iou(masks: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the IoU of mask i with mask i, (N,); 0 where both are empty.

    Args:
        masks: (N, H, W), bool.
        truth: (N, H, W), bool.
    """
    overlap = (masks & truth).sum(axis=(1, 2))
    union = (masks | truth).sum(axis=(1, 2))
    return overlap / np.maximum(union, 1)


def filled_boxes(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Fill boxes: all pixels whose centers are inside.

    Args:
        boxes: (N, 4), x1, y1, x2, y2 in pixels, edges included.
        shape: Height and width.

    Returns:
        (N, H, W), bool.
    """
    height, width = shape
    x1, y1, x2, y2 = boxes.reshape(-1, 4).T[:, :, None]  # N x 1 each
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    in_x, in_y = (x > x1) & (x < x2), (y > y1) & (y < y2)
    return in_y[:, :, None] & in_x[:, None, :]


def ellipse_masks(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Fill the ellipses inscribed in boxes; see :func:`filled_boxes`."""
    height, width = shape
    x1, y1, x2, y2 = boxes.reshape(-1, 4).T[:, :, None]  # N x 1 each
    half_x = np.maximum((x2 - x1) / 2, 1e-6)
    half_y = np.maximum((y2 - y1) / 2, 1e-6)
    x = (np.arange(width) + 0.5 - (x1 + x2) / 2) / half_x  # N x W
    y = (np.arange(height) + 0.5 - (y1 + y2) / 2) / half_y
    return (y**2)[:, :, None] + (x**2)[:, None, :] <= 1


def match_boxes(
    boxes: np.ndarray,
    labels: np.ndarray,
    gt_boxes: np.ndarray,
    gt_labels: np.ndarray,
    *,
    scores: np.ndarray,
    iou_thr: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Match detections to objects, one to one, best score first.

    Args:
        boxes: (P, 4), x1, y1, x2, y2.
        labels: (P,).
        gt_boxes: (N, 4).
        gt_labels: (N,).
        scores: (P,).
        iou_thr: Minimum box IoU of a match.

    Returns:
        Indices of the matched detections and of their objects.
    """
    iou = box_iou(boxes, gt_boxes)
    iou[labels[:, None] != gt_labels[None, :]] = -1
    pairs = []
    for index in np.argsort(-scores, kind='stable') if iou.size else ():
        best = int(iou[index].argmax())
        if iou[index, best] >= iou_thr:
            pairs.append((index, best))
            iou[:, best] = -1
    matched = np.array(pairs, dtype=int).reshape(-1, 2)
    return matched[:, 0], matched[:, 1]


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of each box with each other, (P, N)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = np.prod(np.maximum(high - low, 0), axis=2)
    first = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    second = np.prod(others[:, 2:] - others[:, :2], axis=1)
    return overlap / np.maximum(first[:, None] + second - overlap, 1e-9)
