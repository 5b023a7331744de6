"""Metrics that compare a detector's boxes with those of a float model."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric

from taskptq.engine.box_agreement import (
    average_precision,
    bootstrap_ratio,
    coco_of_boxes,
    match_boxes,
    read_boxes,
    write_boxes,
)
from taskptq.registry import METRICS

__all__ = ['BoxAgreement', 'BoxDump']


class BoxMetric(BaseMetric):  # type: ignore[misc]
    """Collects the predicted boxes of mmdet's data samples."""

    def process(
        self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the boxes of a batch.

        Raises:
            ValueError: If samples have no predicted boxes.
        """
        del data_batch
        for sample in data_samples:
            found = sample.get('pred_instances')
            if found is None or 'bboxes' not in found:
                raise ValueError(
                    f'{type(self).__name__} needs pred_instances with '
                    'bboxes: use it with a detector'
                )
            boxes = found['bboxes'].float().cpu().tolist()
            scores = found['scores'].float().cpu().tolist()
            labels = found['labels'].cpu().tolist()
            self.results.append(
                {
                    'image_id': sample['img_id'],
                    'boxes': [
                        {
                            'image_id': sample['img_id'],
                            'bbox': [x, y, right - x, bottom - y],
                            'score': score,
                            'category_id': label,
                        }
                        for (x, y, right, bottom), score, label in zip(
                            boxes, scores, labels, strict=True
                        )
                    ],
                }
            )


@METRICS.register_module()
class BoxDump(BoxMetric):
    """Write the predicted boxes of a data set; without a score.

    Args:
        out: JSON file, the ``reference`` of ``BoxAgreement``.
        collect_device: See BaseMetric.
    """

    def __init__(self, out: str, *, collect_device: str = 'cpu') -> None:
        super().__init__(collect_device=collect_device)
        self.out = Path(out)

    def compute_metrics(
        self, results: list[dict[str, Any]]
    ) -> dict[str, float]:
        """Write the boxes of all images."""
        write_boxes([box for one in results for box in one['boxes']], self.out)
        return {'boxes': float(sum(len(one['boxes']) for one in results))}


@METRICS.register_module()
class BoxAgreement(BoxMetric):
    """Compare boxes with a reference model's, on the same images.

    ``agreement/bbox_mAP`` and ``agreement/bbox_mAP_50`` are COCO's AP with
    the reference's confident boxes as annotations. With ``ann_file``,
    ``exact/bbox_mAP`` is the AP without CocoMetric's rounding, and
    ``of_float/low`` and ``of_float/high`` are the 95 % interval of AP over
    the reference's AP, by a paired bootstrap over images.

    Args:
        reference: File of the float model, written by ``BoxDump``.
        ann_file: Annotations of the data set in COCO's form.
        min_score: Least score of a reference box that has to be found.
        num_draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.
        collect_device: See BaseMetric.
    """

    def __init__(
        self,
        reference: str,
        *,
        ann_file: str | None = None,
        min_score: float = 0.3,
        num_draws: int = 200,
        seed: int = 0,
        collect_device: str = 'cpu',
    ) -> None:
        super().__init__(collect_device=collect_device)
        if not 0 <= min_score < 1:
            raise ValueError(f'min_score={min_score}: give one in [0, 1)')
        if num_draws < 1:
            raise ValueError(f'num_draws={num_draws}: give at least 1')
        self.reference = reference
        self.ann_file = ann_file
        self.min_score = min_score
        self.num_draws = num_draws
        self.seed = seed

    def compute_metrics(
        self, results: list[dict[str, Any]]
    ) -> dict[str, float]:
        """Return agreement and, with annotations, AP and its interval."""
        images = [one['image_id'] for one in results]
        boxes = [box for one in results for box in one['boxes']]
        reference = read_boxes(self.reference)
        coco = coco_of_boxes(
            reference, image_ids=images, min_score=self.min_score
        )
        matches = match_boxes(coco, boxes, image_ids=images)
        # The first of COCO's ten IoUs is 0.5.
        loose = [
            type(one)(
                image=one.image,
                hit=one.hit[:1],
                counted=one.counted[:1],
                positives=one.positives,
            )
            for one in matches
        ]
        found = {
            'agreement/bbox_mAP': average_precision(matches).item(),
            'agreement/bbox_mAP_50': average_precision(loose).item(),
        }
        if self.ann_file is not None:
            found |= self.exact(boxes, reference=reference, images=images)
        return {
            name: value
            for name, value in found.items()
            if math.isfinite(value)
        }

    def exact(
        self,
        boxes: list[dict[str, Any]],
        *,
        reference: list[dict[str, Any]],
        images: list[int],
    ) -> dict[str, float]:
        """Return the unrounded AP and its interval over the reference's."""
        from pycocotools.coco import COCO

        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(self.ann_file)
        names = {one['name']: one['id'] for one in coco.cats.values()}
        classes = [names[name] for name in self.dataset_meta['classes']]

        def matched(some: list[dict[str, Any]]) -> Any:
            named = [
                {**box, 'category_id': classes[box['category_id']]}
                for box in some
            ]
            return match_boxes(coco, named, image_ids=images)

        own, other = matched(boxes), matched(reference)
        low, high = bootstrap_ratio(
            own, other, num_draws=self.num_draws, seed=self.seed
        )
        return {
            'exact/bbox_mAP': average_precision(own).item(),
            'of_float/low': low,
            'of_float/high': high,
        }
