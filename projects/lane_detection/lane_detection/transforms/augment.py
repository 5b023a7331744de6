"""Random flips and affine maps of images with lanes."""

from __future__ import annotations

import math
import random
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from .frame import move_lanes, open_frame

__all__ = ['LaneAffine', 'LaneFlip', 'affine_matrix']


def refuse_fixed(results: dict[str, Any], name: str) -> None:
    """Refuse to move an image without its lanes.

    Raises:
        ValueError: If the lanes were loaded in original pixels.
    """
    if results.get('lane_frame') == 'original':
        raise ValueError(
            f'{name} moves the image, but the lanes were loaded after '
            'LaneResize and stay in original pixels: load them before it'
        )


@TRANSFORMS.register_module()
class LaneFlip(BaseTransform):
    """Mirror left and right, slots and existence flags included.

    Args:
        prob: Probability.

    Required keys: img. Changed: img, gt_lanes, gt_slots, existence. Added:
    flip.
    """

    def __init__(self, *, prob: float = 0.5) -> None:
        self.prob = prob

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Flip image and lanes, or not."""
        open_frame(results)
        refuse_fixed(results, 'LaneFlip')
        flip = random.random() < self.prob
        results['flip'] = flip != bool(results.get('flip', False))
        if not flip:
            return results
        width = results['img'].shape[1]
        results['img'] = cv2.flip(results['img'], 1)
        results['moved'] = True
        move_lanes(
            results,
            lambda points: np.stack(
                [width - points[:, 0], points[:, 1]], axis=1
            ),
        )
        if 'gt_slots' in results:
            slots = results['gt_slots']
            last = results.get('num_slots', 4) - 1
            results['gt_slots'] = np.where(slots < 0, slots, last - slots)
        if results.get('existence') is not None:
            results['existence'] = tuple(results['existence'][::-1])
        return results


def affine_matrix(
    *,
    shape: tuple[int, int],
    angle: float,
    scale: float,
    shift: tuple[float, float],
) -> np.ndarray:
    """Return a rotation and zoom about the center, and a shift.

    Args:
        shape: Height and width of the image in pixels.
        angle: Degrees, positive turns the image clockwise.
        scale: Magnification.
        shift: x and y in pixels.

    Returns:
        (2, 3), maps continuous coordinates (x, y, 1) to new ones.
    """
    height, width = shape
    center = np.array([width / 2, height / 2])
    turn = math.radians(angle)
    linear = scale * np.array(
        [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
    )
    offset = center + np.array(shift) - linear @ center
    return np.concatenate([linear, offset[:, None]], axis=1)


@TRANSFORMS.register_module()
class LaneAffine(BaseTransform):
    """Rotate, zoom and shift; best before the crop, which removes road.

    Args:
        prob: Probability.
        max_angle: Largest rotation in degrees, either way.
        scale: Smallest and largest magnification.
        max_shift: Largest shift in x and y, relative to the image's sides.
        fill: Value of pixels outside the image.

    Required keys: img. Changed: img, gt_lanes.
    """

    def __init__(
        self,
        *,
        prob: float = 1.0,
        max_angle: float = 6.0,
        scale: tuple[float, float] = (0.85, 1.15),
        max_shift: tuple[float, float] = (0.04, 0.03),
        fill: int = 0,
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(
                f'scale={tuple(scale)} must be (least, largest), positive'
            )
        self.prob = prob
        self.max_angle = max_angle
        self.scale = scale
        self.max_shift = max_shift
        self.fill = fill

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Move image and lanes, or not."""
        open_frame(results)
        refuse_fixed(results, 'LaneAffine')
        if random.random() >= self.prob:
            return results
        height, width = results['img'].shape[:2]
        shift_x, shift_y = (
            random.uniform(-most, most) for most in self.max_shift
        )
        matrix = affine_matrix(
            shape=(height, width),
            angle=random.uniform(-self.max_angle, self.max_angle),
            scale=random.uniform(*self.scale),
            shift=(shift_x * width, shift_y * height),
        )
        results['img'] = warp(results['img'], matrix, fill=self.fill)
        results['moved'] = True
        linear, offset = matrix[:, :2], matrix[:, 2]
        move_lanes(results, lambda points: points @ linear.T + offset)
        return results


def warp(image: np.ndarray, matrix: np.ndarray, *, fill: int) -> np.ndarray:
    """Apply a map of continuous coordinates to an image.

    OpenCV's integer coordinates are the centers of pixels, half a pixel away
    from ours.
    """
    pixels = matrix.copy()
    pixels[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image,
        pixels,
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(fill, fill, fill),
    )
