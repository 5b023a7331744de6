"""Load images and their lanes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

from ..datasets.base import read_lanes
from ..geometry import assign_slots, order_slots, to_input
from .frame import open_frame

__all__ = ['LoadLaneAnnotations', 'LoadLaneImage']

READ_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
}


def check_reduce(reduce: int) -> None:
    """Refuse divisors unsupported by JPEG readers."""
    if reduce not in READ_FLAGS:
        raise ValueError(f'reduce={reduce} must be one of 1, 2, 4')


@TRANSFORMS.register_module()
class LoadLaneImage(BaseTransform):
    """Read an image (BGR uint8), optionally a JPEG file at reduced size.

    Reading 1640x590 at half size takes a third of the time, where the input
    is smaller anyway. mm's LoadImageFromFile works, too.

    Args:
        reduce: Divisor of the size: 1, 2 or 4; None takes it from the data
            set's ``input_frame``, by default 1.

    Required keys: img_path, optionally label_shape. Added: img, img_shape,
    ori_shape, crop.

    Raises:
        ValueError: For another divisor, or a file that isn't an image.
        FileNotFoundError: If the file is missing.
    """

    def __init__(self, *, reduce: int | None = None) -> None:
        if reduce is not None:
            check_reduce(reduce)
        self.reduce = reduce

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read the image."""
        path = Path(results['img_path'])
        reduce = self.reduce or int(
            (results.get('input_frame') or {}).get('reduce', 1)
        )
        check_reduce(reduce)
        try:
            data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        except FileNotFoundError:
            raise FileNotFoundError(
                f'{path} is missing: check data_root and data_prefix of the '
                'data set'
            ) from None
        image = cv2.imdecode(data, READ_FLAGS[reduce]) if len(data) else None
        if image is None:
            raise ValueError(f'{path} cannot be read as an image')
        results['img'] = image
        if reduce > 1 and results.get('label_shape') is None:
            height, width = image.shape[:2]
            results['label_shape'] = (height * reduce, width * reduce)
        open_frame(results)
        return results


@TRANSFORMS.register_module(name=['LoadLaneAnnotations', 'LoadLanes'])
class LoadLaneAnnotations(BaseTransform):
    """Read the lanes of an image and find their slots.

    Before LaneResize (training), lanes are mapped to pixels of the current
    image and move with it; after LaneResize (test pipelines), they stay in
    original pixels.

    Required keys: img, and those of a lane data set's item. Added: gt_lanes
    (list of (n, 2) float32), gt_slots (L,), lane_frame.

    Raises:
        ValueError: If the image was flipped or warped before.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Read the lanes."""
        open_frame(results)
        if results.get('moved'):
            raise ValueError(
                'LoadLaneAnnotations comes after LaneFlip or LaneAffine, '
                "which moved the image away from the file's lanes: load "
                'them before'
            )
        lanes = read_lanes(results)
        results['gt_slots'] = self.slots(lanes, results)
        moves = not results.get('resized', False)
        results['lane_frame'] = 'input' if moves else 'original'
        results['gt_lanes'] = (
            [to_input(lane, results) for lane in lanes] if moves else lanes
        )
        return results

    def slots(
        self, lanes: list[np.ndarray], results: dict[str, Any]
    ) -> np.ndarray:
        """Return the slots: the data set's own, or found from the lanes."""
        shape = results['ori_shape']
        flags = results.get('existence')
        if flags is not None:
            slots = order_slots(lanes, flags, height=shape[0])
            if slots is not None:
                return slots
        return assign_slots(
            lanes, shape=shape, num_slots=results.get('num_slots', 4)
        )
