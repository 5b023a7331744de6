"""Base class of the lane metrics, and readers of their lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from torch import Tensor

from .predictions import read_predictions

__all__ = ['GROUND_TRUTH', 'LaneMetric', 'predicted_lanes', 'scaled_lanes']

GROUND_TRUTH = 'gt'


def predicted_lanes(sample: Mapping[str, Any]) -> list[np.ndarray]:
    """Return the predicted lanes, (n, 2) each in original pixels.

    Raises:
        ValueError: If the model made none.
    """
    found = sample.get('pred_lanes')
    if found is None:
        raise ValueError(
            f'image {sample.get("img_id")} has no pred_lanes: the metric '
            "needs a lane detector's predictions"
        )
    return [as_points(lane) for lane in found['points']]


def annotated_lanes(sample: Mapping[str, Any]) -> list[np.ndarray]:
    """Return the annotated lanes, (n, 2) each in original pixels.

    Raises:
        ValueError: If they are not loaded, or in pixels of the input.
    """
    found = sample.get('gt_lanes')
    if found is None:
        raise ValueError(
            f'image {sample.get("img_id")} has no gt_lanes: load the '
            'annotated lanes in the test pipeline'
        )
    if sample.get('lane_frame', 'original') != 'original':
        raise ValueError(
            f'the annotated lanes of image {sample.get("img_id")} are in '
            f'pixels of the {sample["lane_frame"]}: load them after the last '
            'transform of the test pipeline that changes the image'
        )
    return [as_points(lane) for lane in found['points']]


def as_points(lane: Any) -> np.ndarray:
    """Return a lane as an array (n, 2)."""
    if isinstance(lane, Tensor):
        lane = lane.detach().cpu().numpy()
    return np.asarray(lane).reshape(-1, 2)


def scaled_lanes(
    lanes: list[np.ndarray],
    sample: Mapping[str, Any],
    *,
    canvas: tuple[int, int],
) -> list[np.ndarray]:
    """Scale lanes from the original image to a canvas.

    Args:
        lanes: (n, 2) each, x and y in original pixels.
        sample: Has ``ori_shape``.
        canvas: Height and width, in pixels.
    """
    height, width = sample['ori_shape'][:2]
    if (height, width) == tuple(canvas):
        return lanes
    scale = np.array([canvas[1] / width, canvas[0] / height])
    return [lane * scale for lane in lanes]


class LaneMetric(BaseMetric):
    """Compare predicted lanes with annotated or other predicted ones.

    Args:
        reference: ``'gt'`` for the annotations, or a file written by
            :class:`LaneDump` for another model: its lanes are then the truth,
            so the metric measures the agreement of the models.
        categories: Count only images of these categories, so that one pass
            over several sets is evaluated set by set; None counts all.
        collect_device: See BaseMetric.
        prefix: Prefix of the results' names; None is no prefix for
            annotations and ``agreement`` for a file, so that both can be
            measured at once.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it isn't one of LaneDump's.
    """

    def __init__(
        self,
        *,
        reference: str = GROUND_TRUTH,
        categories: Sequence[str] | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device)
        self.reference = reference
        self.categories = None if categories is None else set(categories)
        self.predictions = (
            None if reference == GROUND_TRUTH else read_predictions(reference)
        )
        if prefix is None and self.predictions is not None:
            prefix = 'agreement'
        self.prefix = prefix

    def counts(self, sample: Mapping[str, Any]) -> bool:
        """Return whether an image counts.

        An image that doesn't still adds an empty result, since processes
        need equally many.
        """
        return (
            self.categories is None
            or sample.get('category') in self.categories
        )

    def reference_lanes(self, sample: Mapping[str, Any]) -> list[np.ndarray]:
        """Return the lanes to compare an image's predictions with.

        Raises:
            ValueError: If there are none for the image.
        """
        if self.predictions is None:
            return annotated_lanes(sample)
        name = str(sample['img_id'])
        if name not in self.predictions:
            raise ValueError(
                f'reference={self.reference!r} has no image {name!r}: write '
                'it with LaneDump on the same images'
            )
        return self.predictions[name]
