"""Lane distortion score of the predictions of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.registry import METRICS

from taskptq.methods.selective_focus.lane_distortion import lane_distortion

from .base import GROUND_TRUTH, LaneMetric, predicted_lanes

__all__ = ['LaneDistortionMetric', 'common_rows']


def common_rows(sample: Mapping[str, Any], *, num_rows: int) -> np.ndarray:
    """Return the y of rows spread evenly over the network's input.

    Args:
        sample: Has ``crop``, or else ``ori_shape``.
        num_rows: Number of rows.

    Returns:
        (num_rows,), in original pixels, centers of equal strips.
    """
    crop = sample.get('crop')
    top, bottom = (
        (0, sample['ori_shape'][0]) if crop is None else (crop[1], crop[3])
    )
    return top + (np.arange(num_rows) + 0.5) * (bottom - top) / num_rows


@METRICS.register_module()
class LaneDistortionMetric(LaneMetric):
    """Distance of predicted lanes from a reference, in original pixels.

    See ``taskptq/methods/selective_focus/lane_distortion.py``, our
    reconstruction of the score. Results:

    - ``lds``: mean over the images of the score, in [0, gamma]; 0 means the
      same lanes;
    - ``lds_distance``: mean distance of matched lanes over their common rows,
      each capped at gamma;
    - ``lds_matched``: share of the reference's lanes that were matched.

    Args:
        reference: See LaneMetric; usually the file of the float model.
        num_rows: Number of compared rows, evenly spaced over the crop.
        rows: Alternatively, y of the rows in original pixels.
        gamma: Penalty of an unmatched row, in pixels.
        tau: Mean distance in pixels from which lanes count as different.
        categories: See LaneMetric.
        collect_device: See BaseMetric.
        prefix: See LaneMetric.

    Raises:
        ValueError: If ``num_rows`` is not positive.
    """

    def __init__(
        self,
        *,
        reference: str = GROUND_TRUTH,
        num_rows: int = 72,
        rows: Sequence[float] | None = None,
        gamma: float = 30.0,
        tau: float = 30.0,
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
        if num_rows < 1:
            raise ValueError(f'num_rows={num_rows}: give at least 1')
        self.num_rows = num_rows
        self.rows = rows
        self.gamma = gamma
        self.tau = tau

    def process(
        self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]
    ) -> None:
        """Compare the lanes of a batch with the reference.

        Raises:
            ValueError: If predictions or reference are missing.
        """
        del data_batch
        self.results += [
            self.compare(sample) if self.counts(sample) else None
            for sample in data_samples
        ]

    def compare(self, sample: Mapping[str, Any]) -> tuple[float, ...]:
        """Return score, distance, rows, pairs and lanes of an image."""
        found = lane_distortion(
            self.reference_lanes(sample),
            predicted_lanes(sample),
            rows=(
                common_rows(sample, num_rows=self.num_rows)
                if self.rows is None
                else self.rows
            ),
            gamma=self.gamma,
            tau=self.tau,
        )
        return (
            found.score,
            found.distance,
            found.common_rows,
            len(found.pairs),
            found.num_lanes[0],
        )

    def compute_metrics(
        self, results: list[tuple[float, ...] | None]
    ) -> dict[str, float]:
        """Average over the images, the matched rows, and the lanes."""
        values = np.array(
            [result for result in results if result is not None], dtype=float
        ).reshape(-1, 5)
        score, distance, rows, pairs, lanes = values.sum(axis=0).tolist()
        return {
            'lds': score / max(len(values), 1),
            'lds_distance': distance / max(rows, 1),
            'lds_matched': pairs / lanes if lanes else 1.0,
        }
