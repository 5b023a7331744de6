"""TuSimple's accuracy of the lanes of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.registry import METRICS

from ..datasets.lane_files import ABSENT, lanes_to_rows
from .base import GROUND_TRUTH, LaneMetric, predicted_lanes, scaled_lanes
from .tusimple import TuSimpleScore, tusimple_f1, tusimple_score

__all__ = ['TUSIMPLE_CANVAS', 'TuSimpleMetric']

TUSIMPLE_CANVAS = (720, 1280)
# Maximum distance in pixels of a point from its row.
ROW_TOLERANCE = 0.01


@METRICS.register_module()
class TuSimpleMetric(LaneMetric):
    """TuSimple's accuracy, FP and FN, and the F1 that papers report.

    Follows the benchmark's own script (see :mod:`.tusimple`), apart from its
    time limit of 200 ms for a prediction. Results: ``accuracy``, ``FP``,
    ``FN``, means over the images, and ``F1`` of these means.

    Predicted lanes are sampled at the rows of the annotations, ``h_samples``,
    between their lowest and highest point and inside the image; those without
    any such row are dropped, as in a file of predictions. Annotated lanes
    without points count as lanes, as in the script.

    Args:
        canvas: Height and width of the frame for the thresholds in pixels;
            lanes and rows of images of other sizes are scaled to it.
        reference: See LaneMetric.
        categories: See LaneMetric.
        collect_device: See BaseMetric.
        prefix: See LaneMetric.
    """

    def __init__(
        self,
        *,
        canvas: Sequence[int] = TUSIMPLE_CANVAS,
        reference: str = GROUND_TRUTH,
        categories: Sequence[str] | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(
            reference=reference,
            categories=categories,
            collect_device=collect_device,
            prefix=prefix,
        )
        height, width = canvas
        self.canvas = (height, width)

    def process(
        self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]
    ) -> None:
        """Score the lanes of a batch.

        Raises:
            ValueError: If predictions, reference or rows are missing.
        """
        del data_batch
        self.results += [
            tuple(self.score(sample)) if self.counts(sample) else None
            for sample in data_samples
        ]

    def score(self, sample: Mapping[str, Any]) -> TuSimpleScore:
        """Return the scores of an image."""
        rows = sample.get('h_samples')
        if rows is None:
            raise ValueError(
                f'image {sample.get("img_id")} has no h_samples: the metric '
                'needs the rows of TuSimpleDataset'
            )
        height = sample['ori_shape'][0]
        rows = np.asarray(rows, dtype=float) * (self.canvas[0] / height)
        predicted, truth = (
            scaled_lanes(lanes, sample, canvas=self.canvas)
            for lanes in (
                predicted_lanes(sample),
                self.reference_lanes(sample),
            )
        )
        if self.predictions is None:
            absent = int(sample.get('num_absent_lanes') or 0)
            expected = annotated_rows(truth, rows) + [
                np.full(len(rows), float(ABSENT)) for _ in range(absent)
            ]
        else:
            expected = self.at_rows(truth, rows)
        return tusimple_score(
            self.at_rows(predicted, rows), expected, h_samples=rows
        )

    def at_rows(
        self, lanes: list[np.ndarray], rows: np.ndarray
    ) -> list[list[float]]:
        """Return predicted lanes as x at rows."""
        ordered = [
            lane[np.argsort(-lane[:, 1], kind='stable')]
            for lane in map(finite_points, lanes)
        ]
        return lanes_to_rows(ordered, rows, width=self.canvas[1])

    def compute_metrics(
        self, results: list[tuple[float, ...] | None]
    ) -> dict[str, float]:
        """Average over the images."""
        scores = np.array(
            [result for result in results if result is not None], dtype=float
        ).reshape(-1, 3)
        accuracy, fp, fn = (
            scores.mean(axis=0) if len(scores) else (0.0, 0.0, 1.0)
        )
        return {
            'accuracy': float(accuracy),
            'FP': float(fp),
            'FN': float(fn),
            'F1': tusimple_f1(float(fp), float(fn)),
        }


def finite_points(lane: np.ndarray) -> np.ndarray:
    """Return the points of a lane whose coordinates are finite."""
    return lane[np.isfinite(lane).all(axis=1)]


def annotated_rows(
    lanes: list[np.ndarray], rows: np.ndarray
) -> list[np.ndarray]:
    """Return annotated lanes as x at rows, keeping gaps.

    Raises:
        ValueError: If a point isn't in one of the rows.
    """
    sampled = []
    for number, lane in enumerate(lanes):
        gaps = np.abs(lane[:, 1, None] - rows[None])  # n x R
        if not (gaps.min(axis=1) < ROW_TOLERANCE).all():
            raise ValueError(
                f'annotated lane {number} has points between the rows '
                'h_samples: the metric needs the unchanged annotations of '
                'TuSimpleDataset'
            )
        values = np.full(len(rows), float(ABSENT))
        values[gaps.argmin(axis=1)] = lane[:, 0]
        sampled.append(values)
    return sampled
