"""Images as data URIs: photographs, masks and maps of classes."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ['class_colors', 'overlay', 'photo', 'read_image']

MAX_SIDE = 640
QUALITY = 78
# Angle between the hues of neighboring classes: the golden section.
GOLDEN = 0.618033988749895


def read_image(path: str | Path) -> NDArray[np.uint8] | None:
    """Return an image as RGB, (H, W, 3); None if it cannot be read.

    Args:
        path: File that the data set names.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert('RGB'))
    except (OSError, UnidentifiedImageError, ValueError):
        return None


def photo(image: NDArray[np.uint8]) -> str:
    """Return an RGB image as a JPEG data URI of at most 640 pixels a side."""
    from PIL import Image

    small = Image.fromarray(image)
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    return _uri(small, 'JPEG', quality=QUALITY)


def overlay(
    classes: NDArray[Any],
    *,
    colors: Sequence[tuple[int, int, int]],
    opacity: float,
) -> str:
    """Return a map of classes as a PNG data URI that lets an image through.

    Args:
        classes: (H, W); negative values and 255 and more are left out.
        colors: Color of each class, RGB in [0, 255].
        opacity: Of the colors, in [0, 1].
    """
    from PIL import Image

    step = max(1, -(-max(classes.shape) // MAX_SIDE))
    small = classes[::step, ::step]
    known = (small >= 0) & (small < min(255, len(colors)))
    palette = np.asarray(colors, dtype=np.uint8).reshape(-1, 3)
    picture = np.zeros((*small.shape, 4), dtype=np.uint8)
    picture[known, :3] = palette[small[known].astype(np.int64)]
    picture[known, 3] = round(255 * opacity)
    return _uri(Image.fromarray(picture).quantize(256), 'PNG', optimize=True)


def class_colors(count: int) -> list[tuple[int, int, int]]:
    """Return bright colors that differ between neighbors, RGB.

    >>> len(set(class_colors(80)))
    80
    """
    found = []
    for index in range(count):
        lightness = (0.55, 0.45, 0.65)[index % 3]
        rgb = colorsys.hls_to_rgb(index * GOLDEN % 1, lightness, 0.8)
        found.append(tuple(round(255 * part) for part in rgb))
    return found  # type: ignore[return-value]


def _uri(image: Any, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    text = base64.b64encode(stream.getvalue()).decode('ascii')
    return f'data:image/{kind.lower()};base64,{text}'
