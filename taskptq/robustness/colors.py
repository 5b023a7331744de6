"""Round trips through YUV, as cameras and video decoders make them.

BT.601 with limited range, as in SysNoise (Wang et al., MLSys 2023), section
"color space": one U and V per pixel (4:4:4), or per 2 x 2 pixels (NV12).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import cv2
import numpy as np

from taskptq.robustness.arrays import Array

__all__ = ['ROUND_TRIPS', 'from_yuv', 'round_trip', 'to_yuv']

TO_YUV = np.array(
    [
        [0.256788, 0.504129, 0.097906],
        [-0.148223, -0.290993, 0.439216],
        [0.439216, -0.367788, -0.071427],
    ]
)
TO_RGB = np.array(
    [
        [1.164383, 0.0, 1.596027],
        [1.164383, -0.391762, -0.812968],
        [1.164383, 2.017232, 0.0],
    ]
)
TO_RGB_INTEGER = np.array([[298, 0, 409], [298, -100, -208], [298, 516, 0]])
OFFSET = np.array([16, 128, 128])


def to_yuv(rgb: Array) -> Array:
    """Convert colors to YUV.

    >>> to_yuv(np.array([255, 0, 0])).tolist()
    [81, 90, 240]

    Args:
        rgb: (..., 3), 0 to 255.

    Returns:
        (..., 3) int64: Y from 16 to 235, U and V around 128.
    """
    yuv: Array = np.rint(rgb @ TO_YUV.T).astype(np.int64) + OFFSET
    return yuv


def from_yuv(yuv: Array, *, integer: bool = False) -> Array:
    """Convert YUV to colors.

    >>> from_yuv(np.array([81, 90, 240])).tolist()
    [254, 0, 0]
    >>> from_yuv(np.array([81, 90, 240]), integer=True).tolist()
    [255, 0, 0]

    Args:
        yuv: (..., 3), integers.
        integer: Use eight fractional bits, as hardware does.

    Returns:
        (..., 3) uint8, RGB.
    """
    centered = yuv - OFFSET
    if integer:
        rgb = (centered @ TO_RGB_INTEGER.T + 128) >> 8
    else:
        rgb = np.rint(centered @ TO_RGB.T)
    found: Array = np.clip(rgb, 0, 255).astype(np.uint8)
    return found


def _even(image: Array) -> Array:
    """Repeat the last row and column of odd sizes."""
    height, width = image.shape[:2]
    return np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), 'edge')


def _yuv444(image: Array) -> Array:
    return from_yuv(to_yuv(image))


def _yuv444_integer(image: Array) -> Array:
    return from_yuv(to_yuv(image), integer=True)


def _nv12(image: Array) -> Array:
    height, width = image.shape[:2]
    yuv = to_yuv(_even(image))
    rows, columns = yuv.shape[0] // 2, yuv.shape[1] // 2
    blocks = yuv[..., 1:].reshape(rows, 2, columns, 2, 2)
    chroma = np.rint(blocks.mean(axis=(1, 3))).astype(np.int64)
    yuv[..., 1:] = chroma.repeat(2, axis=0).repeat(2, axis=1)
    return from_yuv(yuv)[:height, :width]


def _opencv_i420(image: Array) -> Array:
    height, width = image.shape[:2]
    planes = cv2.cvtColor(_even(image), cv2.COLOR_RGB2YUV_I420)
    rgb: Array = cv2.cvtColor(planes, cv2.COLOR_YUV2RGB_I420)
    return rgb[:height, :width]


ROUND_TRIPS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        'yuv444': _yuv444,
        'yuv444-integer': _yuv444_integer,
        'nv12': _nv12,
        'opencv-i420': _opencv_i420,
    }
)


def round_trip(image: Array, space: str) -> Array:
    """Convert an image to another color space and back.

    Args:
        image: (H, W, 3) uint8, RGB.
        space: A key of ``ROUND_TRIPS``.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: If the color space is unknown.
    """
    if space not in ROUND_TRIPS:
        raise ValueError(
            f'color space {space!r} is unknown: choose one of '
            f'{", ".join(ROUND_TRIPS)}'
        )
    return np.ascontiguousarray(ROUND_TRIPS[space](image))
