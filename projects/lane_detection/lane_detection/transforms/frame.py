"""The crop and the resize between the original image and the input.

``ori_shape`` (h, w) is the frame of the annotations, ``crop`` the part of it
in the current image and ``img_shape`` the current image's size. An image file
smaller than its annotations' frame thus needs no special case: it shows the
whole frame, resized.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from ..geometry import to_input

__all__ = [
    'LaneCrop',
    'LaneResize',
    'current_lanes',
    'move_lanes',
    'open_frame',
]

# A row, or a row per height of the original image.
Row = int | float | Sequence[tuple[float, float]]


def open_frame(results: dict[str, Any]) -> None:
    """Record that a new image shows the whole frame."""
    if 'crop' in results:
        return
    shape = tuple(results['img'].shape[:2])
    frame = tuple(results.get('label_shape') or shape)
    results['img_shape'] = shape
    results['ori_shape'] = frame
    results['crop'] = (0.0, 0.0, float(frame[1]), float(frame[0]))


def current_lanes(results: Mapping[str, Any]) -> list[np.ndarray] | None:
    """Return the lanes if they move together with the image, else None."""
    if results.get('lane_frame') != 'input':
        return None
    return list(results['gt_lanes'])


def move_lanes(
    results: dict[str, Any], move: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Apply a map of points to the lanes if they move with the image."""
    lanes = current_lanes(results)
    if lanes is not None:
        results['gt_lanes'] = [move(lane).astype(np.float32) for lane in lanes]


def row_of(row: Row, *, height: float, name: str) -> float:
    """Return the row for an original image of this height.

    Raises:
        ValueError: If there is none for this height.
    """
    if isinstance(row, (int, float)):
        return float(row)
    by_height = {float(h): float(value) for h, value in row}
    if height not in by_height:
        raise ValueError(
            f'LaneCrop has no {name} for images of height {height:g}, only '
            f'for {sorted(by_height)}: add a pair'
        )
    return by_height[height]


@TRANSFORMS.register_module()
class LaneCrop(BaseTransform):
    """Crop rows of the original image.

    Args:
        top: First row in original pixels, or (height of the original, row)
            pairs; None takes it from the data set's ``input_frame``, by
            default 0.
        bottom: Row after the last one, in the same form; by default the
            image's height.

    Required keys: img. Changed: img, img_shape, crop, gt_lanes if loaded.

    Raises:
        ValueError: If nothing would be left, or no pair fits.
    """

    def __init__(
        self, *, top: Row | None = None, bottom: Row | None = None
    ) -> None:
        self.top = top
        self.bottom = bottom

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crop image and lanes."""
        open_frame(results)
        height = float(results['ori_shape'][0])
        top = self.row(results, 'top', height=height, default=0.0)
        bottom = self.row(results, 'bottom', height=height, default=height)
        left, _, right, _ = results['crop']
        corners = to_input(np.array([[left, top], [right, bottom]]), results)
        # The crop is rounded to whole pixels.
        first, last = (round(float(y)) for y in corners[:, 1])
        rows = results['img'].shape[0]
        if not 0 <= first < last <= rows:
            raise ValueError(
                f'LaneCrop rows [{top:g}, {bottom:g}) are empty or reach '
                f'beyond the remaining rows of the original image of height '
                f'{height:g}'
            )
        old = results['crop']
        scale = rows / (old[3] - old[1])
        results['img'] = results['img'][first:last]
        results['img_shape'] = results['img'].shape[:2]
        results['crop'] = (
            left,
            old[1] + first / scale,
            right,
            old[1] + last / scale,
        )
        move_lanes(results, lambda points: points - (0, first))
        return results

    def row(
        self,
        results: Mapping[str, Any],
        name: str,
        *,
        height: float,
        default: float,
    ) -> float:
        """Return a limit: the argument, the data set's, or the default."""
        value = getattr(self, name)
        if value is None:
            value = (results.get('input_frame') or {}).get(name)
        if value is None:
            return default
        return row_of(value, height=height, name=name)


@TRANSFORMS.register_module()
class LaneResize(BaseTransform):
    """Resize to the network's input, without keeping the ratio.

    Lanes loaded before it move with the image; those loaded after it stay in
    original pixels, as metrics need them.

    Args:
        size: Height and width; None takes them from ``input_frame``.

    Required keys: img. Changed: img, img_shape, gt_lanes if loaded. Added:
    resized.

    Raises:
        ValueError: If there is no size.
    """

    def __init__(self, *, size: tuple[int, int] | None = None) -> None:
        self.size = None if size is None else tuple(size)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Resize image and lanes."""
        open_frame(results)
        size = self.size or (results.get('input_frame') or {}).get('size')
        if size is None:
            raise ValueError(
                'LaneResize has no size: give size=(h, w), or input_frame='
                'dict(size=(h, w)) of the data set'
            )
        old_height, old_width = results['img'].shape[:2]
        height, width = (int(side) for side in size)
        if (height, width) != (old_height, old_width):
            # Averaging preserves markings thinner than a pixel.
            smaller = height <= old_height and width <= old_width
            results['img'] = cv2.resize(
                results['img'],
                (width, height),
                interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR,
            )
        results['img_shape'] = (height, width)
        results['resized'] = True
        scale = (width / old_width, height / old_height)
        move_lanes(results, lambda points: points * scale)
        return results
