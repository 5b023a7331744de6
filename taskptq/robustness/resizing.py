"""Resizing by other libraries and methods.

OpenCV's nearest takes the sample at floor(i * scale), Pillow's that at the
cell's center: half a pixel apart. Pillow's filters widen with the step when
they shrink (antialiasing), OpenCV's do not, except 'area'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from taskptq.robustness.arrays import Array

__all__ = ['METHODS', 'resize', 'resize_method_of']

Size = tuple[int, int]


def _opencv(image: Array, size: Size, *, flag: int) -> Array:
    return cv2.resize(image, size[::-1], interpolation=flag)


def _pillow(image: Array, size: Size, *, flag: Image.Resampling) -> Array:
    resized = Image.fromarray(image).resize(size[::-1], flag)
    return np.asarray(resized)


def _torch(image: Array, size: Size, *, antialias: bool) -> Array:
    """Bilinear, as torchvision resizes tensors."""
    planes = torch.from_numpy(np.array(image)).float()
    resized = F.interpolate(
        planes.movedim(-1, 0)[None],
        size=size,
        mode='bilinear',
        align_corners=False,
        antialias=antialias,
    )
    return resized[0].movedim(0, -1).round().clamp(0, 255).byte().numpy()


METHODS: Mapping[str, Callable[[Array, Size], Array]] = MappingProxyType(
    {
        'opencv-bilinear': partial(_opencv, flag=cv2.INTER_LINEAR),
        'opencv-nearest': partial(_opencv, flag=cv2.INTER_NEAREST),
        'opencv-nearest-exact': partial(_opencv, flag=cv2.INTER_NEAREST_EXACT),
        'opencv-area': partial(_opencv, flag=cv2.INTER_AREA),
        'opencv-bicubic': partial(_opencv, flag=cv2.INTER_CUBIC),
        'opencv-lanczos4': partial(_opencv, flag=cv2.INTER_LANCZOS4),
        'pillow-bilinear': partial(_pillow, flag=Image.Resampling.BILINEAR),
        'pillow-nearest': partial(_pillow, flag=Image.Resampling.NEAREST),
        'pillow-box': partial(_pillow, flag=Image.Resampling.BOX),
        'pillow-hamming': partial(_pillow, flag=Image.Resampling.HAMMING),
        'pillow-bicubic': partial(_pillow, flag=Image.Resampling.BICUBIC),
        'pillow-lanczos': partial(_pillow, flag=Image.Resampling.LANCZOS),
        'torch-bilinear': partial(_torch, antialias=False),
        'torch-antialias': partial(_torch, antialias=True),
    }
)


def resize(image: Array, size: Size, *, method: str) -> Array:
    """Resize an image.

    Args:
        image: (H, W, C) uint8.
        size: Height and width of the result.
        method: A key of ``METHODS``.

    Returns:
        (height, width, C) uint8.

    Raises:
        ValueError: If the method is unknown.
    """
    if method not in METHODS:
        raise ValueError(
            f'resize method {method!r} is unknown: choose one of '
            f'{", ".join(METHODS)}'
        )
    return np.ascontiguousarray(METHODS[method](image, size))


def resize_method_of(before: Array, after: Array) -> str | None:
    """Return the method that made an image of another, bit for bit.

    Args:
        before: (H, W, C) uint8.
        after: (h, w, C) uint8.

    Returns:
        The first method that fits; None if none does, as for a padding, a
        crop or a warp.
    """
    size = (after.shape[0], after.shape[1])
    for method in METHODS:
        if np.array_equal(resize(before, size, method=method), after):
            return method
    return None
