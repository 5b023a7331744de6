"""From an image file to a network's input without the host.

``preprocessing`` describes a config's test pipeline and a model's data
preprocessor in plain steps, which an exported file carries; ``prepare_image``
follows them. Pipelines of other transforms take the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskptq.engine.import_style import type_name

__all__ = ['PreparedImage', 'prepare_image', 'preprocessing', 'read_image']

Array = NDArray[Any]
# Transforms without effect on an unlabeled image.
IGNORED = (
    'LoadImageFromFile',
    'LoadAnnotations',
    'PackDetInputs',
    'PackSegInputs',
)


@dataclass(frozen=True, kw_only=True)
class PreparedImage:
    """An image as a network takes it.

    Args:
        pixels: (1, 3, H, W), float32.
        image_shape: Height and width of the resized image, without padding.
        scale: Resized width and height, each over the original.
        original_shape: Height and width of the file.
    """

    pixels: Array
    image_shape: tuple[int, int]
    scale: tuple[float, float]
    original_shape: tuple[int, int]


def preprocessing(
    model: Any, pipeline: Sequence[Mapping[str, Any]] | None
) -> list[dict[str, Any]] | None:
    """Describe how images are prepared, in order; None if it takes the host.

    Args:
        model: Model with a ``data_preprocessor`` that normalizes and pads.
        pipeline: Transforms of the test set.
    """
    steps: list[dict[str, Any]] = []
    for transform in pipeline or ():
        name = type_name(transform.get('type'))
        if name in IGNORED:
            continue
        step = _step(name, transform)
        if step is None:
            return None
        steps.append(step)
    normal = _normalization(getattr(model, 'data_preprocessor', None))
    return None if normal is None else steps + normal


def _step(name: str, transform: Mapping[str, Any]) -> dict[str, Any] | None:
    """Describe one transform."""
    if name == 'Resize':
        scale = transform.get('scale')
        if not isinstance(scale, (tuple, list)) or len(scale) != 2:
            return None
        return {
            'step': 'resize',
            'scale': [int(side) for side in scale],
            'keep_ratio': bool(transform.get('keep_ratio', False)),
        }
    if name == 'Pad':
        value = transform.get('pad_val', 0)
        if isinstance(value, Mapping):
            value = value.get('img', 0)
        value = value[0] if isinstance(value, (tuple, list)) else value
        size = transform.get('size')
        return {
            'step': 'pad',
            # As written in configs: width, height.
            'size': None if size is None else [int(s) for s in size][::-1],
            'square': bool(transform.get('pad_to_square', False)),
            'divisor': int(transform.get('size_divisor') or 1),
            'value': float(value),
        }
    return None


def _normalization(preprocessor: Any) -> list[dict[str, Any]] | None:
    """Describe what the data preprocessor does."""
    known = ('mean', 'std', '_channel_conversion', 'channel_conversion')
    if preprocessor is None or not any(
        hasattr(preprocessor, k) for k in known
    ):
        return None
    swaps = getattr(preprocessor, '_channel_conversion', None)
    if swaps is None:
        swaps = getattr(preprocessor, 'channel_conversion', False)
    normal: dict[str, Any] = {
        'step': 'normalize',
        # Images are read as BGR.
        'channels': 'rgb' if swaps else 'bgr',
        'mean': None,
        'std': None,
    }
    for name in ('mean', 'std'):
        value = getattr(preprocessor, name, None)
        if value is not None:
            normal[name] = [float(v) for v in value.flatten().tolist()]
    size = getattr(preprocessor, 'test_cfg', None) or {}
    divisor = getattr(preprocessor, 'pad_size_divisor', None)
    if divisor is None:
        divisor = size.get('size_divisor')
    if size.get('size') is not None:
        return None
    value = getattr(preprocessor, 'pad_value', 0)
    pad = {
        'step': 'pad',
        'size': None,
        'square': False,
        'divisor': int(divisor or 1),
        'value': float(value),
    }
    return [normal, pad]


def read_image(path: str | Path) -> Array:
    """Read an image, (H, W, 3) BGR, uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image.
    """
    import cv2

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no image {path}')
    image = cv2.imdecode(
        np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR
    )
    if image is None:
        raise ValueError(f'{path} is not an image that can be read')
    return image


def prepare_image(
    image: Array, steps: Sequence[Mapping[str, Any]]
) -> PreparedImage:
    """Resize, normalize and pad an image.

    Args:
        image: (H, W, 3), BGR, uint8.
        steps: See :func:`preprocessing`.

    Raises:
        ValueError: If a step is unknown.
    """
    original = image.shape[:2]
    shape = original
    for step in steps:
        if step['step'] == 'resize':
            image = resize(image, step)
            shape = image.shape[:2]
        elif step['step'] == 'pad':
            image = pad(image, step)
        elif step['step'] == 'normalize':
            image = normalize(image, step)
        else:
            raise ValueError(
                f'the file prepares images by {step["step"]!r}, which is not '
                'known here: give its config'
            )
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
    return PreparedImage(
        pixels=pixels,
        image_shape=shape,
        scale=(shape[1] / original[1], shape[0] / original[0]),
        original_shape=original,
    )


def resize(image: Array, step: Mapping[str, Any]) -> Array:
    """Resize to a width and height, or to the largest size within them."""
    import cv2

    height, width = image.shape[:2]
    scale = step['scale']
    new = (scale[0], scale[1])
    if step['keep_ratio']:
        factor = min(
            max(scale) / max(height, width), min(scale) / min(height, width)
        )
        new = (int(width * factor + 0.5), int(height * factor + 0.5))
    resized: Array = cv2.resize(image, new, interpolation=cv2.INTER_LINEAR)
    return resized


def pad(image: Array, step: Mapping[str, Any]) -> Array:
    """Pad at the right and at the bottom."""
    height, width = image.shape[:2]
    if step['size'] is not None:
        goal = tuple(step['size'])
    elif step['square']:
        goal = (max(height, width),) * 2
    else:
        goal = (height, width)
    goal = tuple(
        -(-side // step['divisor']) * step['divisor'] for side in goal
    )
    padded = np.full(
        (max(goal[0], height), max(goal[1], width), 3),
        step['value'],
        dtype=image.dtype,
    )
    padded[:height, :width] = image
    return padded


def normalize(image: Array, step: Mapping[str, Any]) -> Array:
    """Order the channels and apply mean and std, if there are any."""
    image = image.astype(np.float32)
    if step['channels'] == 'rgb':
        image = image[..., ::-1]
    if step['mean'] is not None:
        image = image - np.array(step['mean'], np.float32)
        image = image / np.array(step['std'], np.float32)
    return image
