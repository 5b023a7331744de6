"""Views of an image for SAM, in training and in test pipelines."""

from __future__ import annotations

import math
import random
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import PackDetInputs
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks

__all__ = ['PackSAMInputs', 'SAMViews', 'ZoomCrop', 'tile_origins']

VIEW_KEYS = (
    'img_id',
    'img_path',
    'ori_shape',
    'img_shape',
    'scale_factor',
    'sam_views',
    'sam_view_sizes',
)


def tile_origins(length: int, *, tile: int, overlap: float) -> list[int]:
    """Place tiles of equal size evenly along one side, without gaps.

    Args:
        length: Side of the image in pixels.
        tile: Side of a tile in pixels.
        overlap: Minimum overlap of neighbors, relative to ``tile``; rounding
            to whole pixels may cost up to one pixel.

    Returns:
        The first pixel of each tile, ascending from 0; the last tile ends
        with the side.
    """
    if length <= tile:
        return [0]
    count = math.ceil((length - tile) / (tile * (1 - overlap))) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


@TRANSFORMS.register_module()
class SAMViews(BaseTransform):
    """Cut the views that SAM embeds; use it before the detector's Resize.

    The last view is the whole image, its longest side resized to
    ``image_size``. With a ``zoom``, magnified square tiles come before it,
    since small objects need more pixels than a small SAM has at scale 1.

    Args:
        image_size: Side of SAM's input, S.
        zoom: Magnification of the tiles; None for no tiles.
        overlap: Minimum overlap of neighboring tiles, relative to their side.

    Raises:
        ValueError: If the overlap is not in [0, 1), or tiles would be
            smaller than a pixel.

    Required keys: img (BGR, uint8). Added keys: sam_imgs (list of RGB
    arrays), sam_views (V, 4), sam_view_sizes (V, 2).
    """

    def __init__(
        self,
        *,
        image_size: int = 1024,
        zoom: float | None = None,
        overlap: float = 0.25,
    ) -> None:
        if not 0 <= overlap < 1:
            raise ValueError(f'overlap={overlap} must lie in [0, 1)')
        if zoom is not None and not 0 < zoom <= image_size:
            raise ValueError(
                f'zoom={zoom} must be positive and at most image_size='
                f'{image_size}; give None for no tiles'
            )
        self.image_size = image_size
        self.zoom = zoom
        self.overlap = overlap

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add the views."""
        image = cv2.cvtColor(results['img'], cv2.COLOR_BGR2RGB)
        height, width = image.shape[:2]
        views = [*self.tiles(height, width), (0, 0, width, height)]
        images = [
            self.resize(image[y : y + h, x : x + w]) for x, y, w, h in views
        ]
        results['sam_imgs'] = images
        results['sam_views'] = np.array(views, dtype=np.float32)
        results['sam_view_sizes'] = np.array(
            [view.shape[:2] for view in images]
        )
        return results

    def tiles(
        self, height: int, width: int
    ) -> list[tuple[int, int, int, int]]:
        """Return x, y, width, height of the tiles in pixels."""
        if self.zoom is None:
            return []
        side = round(self.image_size / self.zoom)
        if max(height, width) <= side:
            return []
        return [
            (x, y, min(side, width), min(side, height))
            for y in tile_origins(height, tile=side, overlap=self.overlap)
            for x in tile_origins(width, tile=side, overlap=self.overlap)
        ]

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Resize the longest side to ``image_size``."""
        height, width = image.shape[:2]
        scale = self.image_size / max(height, width)
        # Halves round up, as in SAM; a thin image keeps one row.
        size = (
            max(int(width * scale + 0.5), 1),
            max(int(height * scale + 0.5), 1),
        )
        smaller = scale < 1
        return cv2.resize(
            image,
            size,
            interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR,
        )


@TRANSFORMS.register_module()
class ZoomCrop(BaseTransform):
    """Crop a square around an object and magnify it: one training view.

    Args:
        image_size: Side of SAM's input, S.
        zoom: Range of the magnification, drawn log-uniformly.
        min_visible: Objects with a smaller share inside the crop are
            dropped.
        min_pixels: Objects with fewer pixels in the halved view are dropped.

    Raises:
        ValueError: If a value is invalid.

    Required keys: img (BGR, uint8), gt_masks, gt_bboxes_labels. Changed:
    gt_bboxes (around the halved masks, in pixels of the view), gt_masks (at
    half of the view's size), gt_bboxes_labels, gt_ignore_flags. Added:
    sam_imgs (one RGB array), sam_views (1, 4), sam_view_sizes (1, 2).
    """

    def __init__(
        self,
        *,
        image_size: int = 256,
        zoom: tuple[float, float] = (1.5, 2.7),
        min_visible: float = 0.6,
        min_pixels: int = 12,
    ) -> None:
        if image_size < 2 or image_size % 2 != 0:
            raise ValueError(
                f'image_size={image_size} must be even: masks have half of it'
            )
        if not 0 < zoom[0] <= zoom[1] <= image_size:
            raise ValueError(
                f'zoom={tuple(zoom)} must be the least and the largest '
                'magnification, positive and at most image_size'
            )
        if min_pixels < 1:
            raise ValueError(f'min_pixels={min_pixels} must be at least 1')
        self.image_size = image_size
        self.zoom = zoom
        self.min_visible = min_visible
        self.min_pixels = min_pixels

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crop image and annotations."""
        image = cv2.cvtColor(results['img'], cv2.COLOR_BGR2RGB)
        masks = results['gt_masks'].to_ndarray()
        height, width = image.shape[:2]
        low, high = (math.log(value) for value in self.zoom)
        zoom = math.exp(random.uniform(low, high))
        side = min(round(self.image_size / zoom), height, width)
        x, y = self.place(masks, side, width, height)
        size = (self.image_size, self.image_size)
        crop = np.ascontiguousarray(image[y : y + side, x : x + side])
        results['sam_imgs'] = [
            cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR)
        ]
        results['sam_views'] = np.array([[x, y, side, side]], np.float32)
        results['sam_view_sizes'] = np.array([size])
        self.crop_objects(results, masks, masks[:, y : y + side, x : x + side])
        return results

    def place(
        self, masks: np.ndarray, side: int, width: int, height: int
    ) -> tuple[int, int]:
        """Draw the crop's corner such that an object lies inside."""
        if len(masks) == 0:
            return (
                random.randint(0, width - side),
                random.randint(0, height - side),
            )
        rows, columns = np.nonzero(random.choice(masks))
        index = random.randrange(len(rows)) if len(rows) else None
        corner = []
        for values, length in ((columns, width), (rows, height)):
            center = length // 2 if index is None else int(values[index])
            start = center - random.randrange(side // 8, side - side // 8)
            corner.append(int(np.clip(start, 0, length - side)))
        return corner[0], corner[1]

    def crop_objects(
        self, results: dict[str, Any], masks: np.ndarray, cropped: np.ndarray
    ) -> None:
        """Keep the visible objects, in pixels of the view."""
        half = self.image_size // 2
        whole = masks.sum(axis=(1, 2))
        left = cropped.sum(axis=(1, 2))
        candidates = np.flatnonzero(
            left >= self.min_visible * np.maximum(whole, 1)
        )
        kept, resized, boxes = [], [], []
        for index in candidates:
            mask = (
                cv2.resize(
                    cropped[index].astype(np.float32),
                    (half, half),
                    interpolation=cv2.INTER_LINEAR,
                )
                > 0.5
            )
            if mask.sum() < self.min_pixels:
                continue
            kept.append(index)
            resized.append(mask.astype(np.uint8))
            boxes.append(mask_box(mask) * 2)
        results['gt_masks'] = BitmapMasks(
            np.array(resized).reshape(-1, half, half), half, half
        )
        results['gt_bboxes'] = HorizontalBoxes(
            torch.tensor(np.array(boxes), dtype=torch.float32).view(-1, 4)
        )
        labels = np.asarray(results['gt_bboxes_labels'])
        results['gt_bboxes_labels'] = labels[kept]
        ignored = results.get('gt_ignore_flags', np.zeros(len(masks), bool))
        results['gt_ignore_flags'] = np.asarray(ignored)[kept]


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Return x1, y1, x2, y2 of a mask's pixels, edges included."""
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    return np.array(
        [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32
    )


@TRANSFORMS.register_module()
class PackSAMInputs(PackDetInputs):
    """Pack the views and, optionally, the detector's image.

    Args:
        image_size: Side of SAM's input, S.
        with_detector: Also pack the detector's image.
        meta_keys: Keys of the data sample's metainfo.
    """

    def __init__(
        self,
        *,
        image_size: int = 1024,
        with_detector: bool = True,
        meta_keys: tuple[str, ...] = VIEW_KEYS,
    ) -> None:
        super().__init__(meta_keys=meta_keys)
        self.image_size = image_size
        self.with_detector = with_detector

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return ``inputs`` (sam: (V, 3, S, S) uint8; img), data_samples."""
        packed = super().transform(results)
        inputs = {
            'sam': torch.from_numpy(
                stack_views(results['sam_imgs'], self.image_size)
            )
        }
        if self.with_detector:
            inputs['img'] = packed['inputs']
        return {**packed, 'inputs': inputs}


def stack_views(images: list[np.ndarray], size: int) -> np.ndarray:
    """Pad RGB images at the right and at the bottom: (V, 3, size, size).

    Raises:
        ValueError: If an image is larger.
    """
    stacked = np.zeros((len(images), 3, size, size), dtype=np.uint8)
    for view, image in zip(stacked, images, strict=True):
        height, width = image.shape[:2]
        if max(height, width) > size:
            raise ValueError(
                f'a view of {width}x{height} pixels does not fit image_size='
                f'{size}: give PackSAMInputs the image_size of SAMViews or '
                'ZoomCrop'
            )
        view[:, :height, :width] = image.transpose(2, 0, 1)
    return stacked
