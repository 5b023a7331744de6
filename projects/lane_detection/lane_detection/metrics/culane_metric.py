"""F1 of lanes by the pixels they cover: CULane and CurveLanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

# The maintained fork of mmdet has a CULaneMetric only for its CLRNet, which
# compares polygons. It is imported first, so that the name always means the
# metric below.
import mmdet.evaluation  # noqa: F401
import numpy as np
from mmdet.registry import METRICS

from .base import GROUND_TRUTH, LaneMetric, predicted_lanes, scaled_lanes
from .culane_f1 import CULANE_CANVAS, count_hits, lane_scores
from .strokes import LaneDrawing

__all__ = ['CULaneMetric', 'CurveLanesMetric']

CURVELANES_CANVAS = (224, 224)
# predicted lanes, true lanes, category of an image
Pair = tuple[list[np.ndarray], list[np.ndarray], str | None]
# category; true positives, false positives, false negatives by threshold
Counts = tuple[str | None, list[list[int]]]


def count_images(
    pairs: Sequence[Pair], thresholds: Sequence[float], drawing: LaneDrawing
) -> list[Counts]:
    """Count correct, wrong and missed lanes of images."""
    return [
        (
            category,
            count_hits(
                predicted, truth, thresholds=thresholds, drawing=drawing
            ).tolist(),
        )
        for predicted, truth, category in pairs
    ]


@METRICS.register_module(force=True)
class CULaneMetric(LaneMetric):
    """CULane's F1, precision and recall.

    Follows the benchmark's own tool (see :mod:`.culane_f1`). Images are
    counted one by one, and only the counts are kept and summed at the end, so
    memory doesn't grow with the predictions, and several processes give the
    same result as one.

    Results, for a threshold of 0.5: ``F1_50``, ``precision_50``,
    ``recall_50``, in [0, 1], also as ``<category>/F1_50`` etc. for each
    category of the images. Categories without true lanes, like CULane's
    crossroads, have ``<category>/FP_50`` instead, their number of false
    positives, which also count in the total.

    Args:
        iou_thrs: Thresholds of the IoU; hits are strictly above.
        canvas: Height and width on which lanes are drawn; lanes of images of
            other sizes are scaled to it.
        lane_width: Width of the drawn lanes, in pixels of the canvas.
        subdivisions: Points of the spline between two points of a lane.
        step: Alternatively, their distance in pixels of the canvas.
        num_workers: Number of processes for counting; 0 counts in the main
            process.
        reference: See LaneMetric.
        categories: See LaneMetric.
        collect_device: See BaseMetric.
        prefix: See LaneMetric.

    Raises:
        ValueError: If a threshold isn't in [0, 1), or canvas, width, or
            number of processes is out of range.
    """

    def __init__(
        self,
        *,
        iou_thrs: Sequence[float] = (0.5, 0.75),
        canvas: Sequence[int] = CULANE_CANVAS,
        lane_width: int = 30,
        subdivisions: int = 50,
        step: float | None = None,
        num_workers: int = 0,
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
        if not iou_thrs or not all(0 <= value < 1 for value in iou_thrs):
            raise ValueError(f'iou_thrs={iou_thrs}: give thresholds in [0, 1)')
        if num_workers < 0:
            raise ValueError(f'num_workers={num_workers}: give 0 or more')
        self.iou_thrs = tuple(iou_thrs)
        height, width = canvas
        self.drawing = LaneDrawing(
            (height, width), lane_width, subdivisions=subdivisions, step=step
        )
        self.num_workers = num_workers
        self.pool: ProcessPoolExecutor | None = None
        self.pending: list[Future[list[Counts]]] = []

    def process(
        self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]
    ) -> None:
        """Count the lanes of a batch.

        Raises:
            ValueError: If predictions or reference are missing.
        """
        del data_batch
        pairs = [self.pair(sample) for sample in data_samples]
        if self.num_workers == 0:
            self.results += count_images(pairs, self.iou_thrs, self.drawing)
            return
        if self.pool is None:
            self.pool = ProcessPoolExecutor(self.num_workers)
        self.pending.append(
            self.pool.submit(count_images, pairs, self.iou_thrs, self.drawing)
        )

    def pair(self, sample: Mapping[str, Any]) -> Pair:
        """Return predicted and true lanes of an image, and its category."""
        if not self.counts(sample):
            return [], [], None
        predicted, truth = (
            scaled_lanes(lanes, sample, canvas=self.drawing.canvas)
            for lanes in (
                predicted_lanes(sample),
                self.reference_lanes(sample),
            )
        )
        return predicted, truth, sample.get('category')

    def evaluate(self, size: int) -> dict[str, float]:
        """Wait for the processes, then evaluate as usual."""
        for future in self.pending:
            self.results += future.result()
        self.pending.clear()
        if self.pool is not None:
            self.pool.shutdown()
            self.pool = None
        return dict(super().evaluate(size))

    def compute_metrics(self, results: list[Counts]) -> dict[str, float]:
        """Sum the counts of all images and of each category."""
        empty = np.zeros((len(self.iou_thrs), 3), dtype=int)
        total = sum((np.array(counts) for _, counts in results), empty)
        found = self.named_scores(total)
        names = {category for category, _ in results if category is not None}
        for name in sorted(names):
            part = sum(
                (
                    np.array(counts)
                    for category, counts in results
                    if category == name
                ),
                empty,
            )
            found |= self.named_scores(part, category=name)
        return found

    def named_scores(
        self, counts: np.ndarray, *, category: str | None = None
    ) -> dict[str, float]:
        """Return the scores of counts (thresholds, 3), by name."""
        before = '' if category is None else f'{category}/'
        found: dict[str, float] = {}
        for threshold, row in zip(self.iou_thrs, counts.tolist(), strict=True):
            scores = lane_scores(*row)
            if category is not None and row[0] + row[2] == 0:
                scores = {'FP': row[1]}
            percent = f'{100 * threshold:g}'
            found |= {
                f'{before}{name}_{percent}': value
                for name, value in scores.items()
            }
        return found


@METRICS.register_module()
class CurveLanesMetric(CULaneMetric):
    """CurveLanes' F1, precision and recall.

    Lanes are scaled to 224 x 224 pixels and drawn 5 pixels wide, with the
    points of their splines one pixel apart; otherwise like
    :class:`CULaneMetric`, whose arguments it has. Points are rounded to
    pixels, as in CULane's tool.

    Args:
        iou_thrs: Thresholds of the IoU; hits are strictly above.
        canvas: Height and width on which lanes are drawn.
        lane_width: Width of the drawn lanes, in pixels of the canvas.
        step: Distance of a spline's points, in pixels of the canvas.
        kwargs: Further arguments of CULaneMetric.
    """

    def __init__(
        self,
        *,
        iou_thrs: Sequence[float] = (0.5,),
        canvas: Sequence[int] = CURVELANES_CANVAS,
        lane_width: int = 5,
        step: float | None = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            iou_thrs=iou_thrs,
            canvas=canvas,
            lane_width=lane_width,
            step=step,
            **kwargs,
        )
