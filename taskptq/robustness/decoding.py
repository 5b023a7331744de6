"""JPEG decoders, which differ in inverse DCT and chroma upsampling.

Pillow, OpenCV and simplejpeg all run libjpeg-turbo and give the same bits;
its fast DCT and fast upsampling, and FFmpeg's own decoder, do not.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
from PIL import Image

from taskptq.robustness.arrays import Array
from taskptq.robustness.packages import optional_package

__all__ = ['DECODERS', 'decode', 'is_jpeg']

JPEG_START = b'\xff\xd8\xff'


def is_jpeg(data: bytes) -> bool:
    """Whether a file is a JPEG image, by its first bytes."""
    return data.startswith(JPEG_START)


def _opencv(data: bytes) -> Array:
    """Decode as stored: orientation tags are not applied."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:
        raise ValueError('OpenCV cannot decode the image')
    return image


def _pillow(data: bytes) -> Array:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert('RGB'))[..., ::-1]


def _turbo(*, fast_dct: bool, fast_upsample: bool) -> Callable[..., Any]:
    """Return libjpeg-turbo with its shortcuts."""

    def turbo(data: bytes) -> Array:
        simplejpeg = optional_package('simplejpeg', noise='a fast decoder')
        image: Array = simplejpeg.decode_jpeg(
            data,
            colorspace='BGR',
            fastdct=fast_dct,
            fastupsample=fast_upsample,
        )
        return image

    return turbo


def _ffmpeg(data: bytes) -> Array:
    av = optional_package('av', noise='decode=ffmpeg')
    with av.open(io.BytesIO(data), format='mjpeg') as container:
        frame = next(container.decode(video=0))
        image: Array = frame.to_ndarray(format='bgr24')
    return image


DECODERS: Mapping[str, Callable[[bytes], Array]] = MappingProxyType(
    {
        'opencv': _opencv,
        'pillow': _pillow,
        'fast-dct': _turbo(fast_dct=True, fast_upsample=False),
        'fast-upsample': _turbo(fast_dct=False, fast_upsample=True),
        'fast': _turbo(fast_dct=True, fast_upsample=True),
        'ffmpeg': _ffmpeg,
    }
)


def decode(data: bytes, decoder: str) -> Array:
    """Decode a JPEG file.

    Args:
        data: Content of the file.
        decoder: A key of ``DECODERS``.

    Returns:
        (H, W, 3) uint8, BGR, as stored (orientation tags are not applied).

    Raises:
        ValueError: If the decoder is unknown or the file unreadable.
        MissingNoisePackageError: If the decoder's package is missing.
    """
    if decoder not in DECODERS:
        raise ValueError(
            f'decoder {decoder!r} is unknown: choose one of '
            f'{", ".join(DECODERS)}'
        )
    return np.ascontiguousarray(DECODERS[decoder](data))
