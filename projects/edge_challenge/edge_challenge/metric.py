"""LPCVCMetric: accuracy and score of the challenge for any segmentor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS

from edge_challenge.score import (
    accuracy_of,
    challenge_score,
    class_dice,
    confusion_matrix,
    image_dice,
)

__all__ = ['LPCVCMetric']


@METRICS.register_module()
class LPCVCMetric(BaseMetric):
    """Mean Dice over images, and accuracy / time.

    Args:
        seconds_per_image: Time of the network for one image, measured on the
            file that is deployed; None leaves the score out. Quantization
            that is simulated takes longer than float, so its time says
            nothing.
        collect_device: See mmengine's BaseMetric.
        prefix: See mmengine's BaseMetric.

    Raises:
        ValueError: If the time is not positive.
    """

    default_prefix = 'lpcvc'

    def __init__(
        self,
        *,
        seconds_per_image: float | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        if seconds_per_image is not None:
            challenge_score(1.0, seconds=seconds_per_image)
        self.seconds_per_image = seconds_per_image

    def process(
        self, data_batch: Any, data_samples: Sequence[dict[str, Any]]
    ) -> None:
        """Count the pixels of a batch.

        Args:
            data_batch: Not used.
            data_samples: With ``gt_sem_seg`` and ``pred_sem_seg``.
        """
        num_classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            maps = [
                np.asarray(sample[key]['data'].squeeze().cpu())
                for key in ('gt_sem_seg', 'pred_sem_seg')
            ]
            confusion = confusion_matrix(*maps, num_classes=num_classes)
            self.results.append((image_dice(confusion), confusion))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Return the accuracy, the Dice of all pixels together, the score."""
        accuracy = accuracy_of([dice for dice, _ in results])
        pooled = class_dice(sum(confusion for _, confusion in results))
        metrics = {
            'mDice': accuracy,
            'pooled_dice': float(np.nanmean(pooled)),
        }
        if self.seconds_per_image is not None:
            metrics['seconds_per_image'] = self.seconds_per_image
            metrics['score'] = challenge_score(
                accuracy, seconds=self.seconds_per_image
            )
        return metrics
