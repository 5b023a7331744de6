"""COCO's mask AP of predictions and annotations in memory."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

__all__ = ['encode_masks', 'mask_average_precision']

COCO_LIMIT = 100


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """Return COCO's run lengths of masks (N, H, W)."""
    return [
        mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
        for mask in masks
    ]


def mask_average_precision(
    images: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """Compute COCO's mask AP.

    COCO limits an image to 100 predictions; here the limit is its number of
    objects if that is larger, since each object was prompted once.

    Args:
        images: ``shape`` (height, width), ``labels``, run lengths ``truth``
            and ``masks``, ``scores``; prediction i has the label of object i.

    Returns:
        ``segm_mAP`` (IoU 0.50 to 0.95), ``segm_mAP_50``, ``segm_mAP_75``; 0
        without objects.
    """
    names = ('segm_mAP', 'segm_mAP_50', 'segm_mAP_75')
    largest = max((len(image['labels']) for image in images), default=0)
    if largest == 0:
        return dict.fromkeys(names, 0.0)
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = ground_truth(images)
        truth.createIndex()
        evaluation = COCOeval(
            truth, truth.loadRes(predictions(images)), 'segm'
        )
        evaluation.params.maxDets = [1, 10, max(COCO_LIMIT, largest)]
        evaluation.evaluate()
        evaluation.accumulate()
    # IoU threshold x recall x class x area range x limit
    precision = evaluation.eval['precision'][..., 0, -1]
    places = (slice(None), slice(0, 1), slice(5, 6))
    return {
        name: average(precision[place])
        for name, place in zip(names, places, strict=True)
    }


def average(precision: np.ndarray) -> float:
    """Average over existing entries; -1 marks classes without objects."""
    return float(precision[precision > -1].mean())


def ground_truth(images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the annotations in COCO's layout; ids start at 1."""
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for label, run in zip(image['labels'], image['truth'], strict=True):
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': number,
                    'category_id': label + 1,
                    'segmentation': run,
                    'area': float(mask_utils.area(run)),
                    'bbox': mask_utils.toBbox(run).tolist(),
                    'iscrowd': 0,
                }
            )
    classes = sorted({item['category_id'] for item in annotations})
    return {
        'info': {},
        'images': [
            {
                'id': number,
                'height': image['shape'][0],
                'width': image['shape'][1],
            }
            for number, image in enumerate(images, start=1)
        ],
        'annotations': annotations,
        'categories': [
            {'id': number, 'name': str(number)} for number in classes
        ],
    }


def predictions(images: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the predictions in COCO's layout."""
    return [
        {
            'image_id': number,
            'category_id': label + 1,
            'segmentation': run,
            'score': score,
        }
        for number, image in enumerate(images, start=1)
        for label, run, score in zip(
            image['labels'], image['masks'], image['scores'], strict=True
        )
    ]
