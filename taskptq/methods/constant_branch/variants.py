"""Other images for a model: what an output that stays cannot depend on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taskptq.calibration.batches import batch_length

__all__ = ['enlarged', 'images_of', 'noisy', 'other_number']

# Rows and columns added to an image. Models want multiples of their stride.
EXTRA = (32, 64)


def images_of(batch: Any) -> list[Tensor]:
    """Return the tensors of a batch that hold its images.

    Args:
        batch: Collated batch: images, lists of these, or a dict that holds
            either as ``inputs``.

    Raises:
        ValueError: If there are none.
    """
    found: list[Tensor] = []

    def note(image: Tensor) -> Tensor:
        found.append(image)
        return image

    _walk(batch, note)
    if not found:
        raise ValueError(
            'a calibration batch holds no images (C, H, W) that could be '
            'changed: leave out ConstantBranch'
        )
    return found


def noisy(batch: Any) -> Any:
    """Return a batch with noise instead of its images, seeded.

    Args:
        batch: As for :func:`images_of`.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(image: Tensor) -> Tensor:
        low, high = (float(end) for end in image.aminmax())
        drawn = torch.rand(image.shape, generator=generator)
        drawn = low + drawn * max(high - low, 1.0)
        return drawn.to(image)

    return _walk(copy.deepcopy(batch), noise)


def enlarged(batch: Any) -> Any:
    """Return a batch whose images have more rows and columns, black ones.

    Args:
        batch: As for :func:`images_of`.
    """
    rows, columns = EXTRA
    larger = _walk(
        copy.deepcopy(batch),
        lambda image: F.pad(image, (0, columns, 0, rows)),
    )
    if isinstance(larger, Mapping):
        for sample in larger.get('data_samples') or ():
            _enlarge_shape(sample)
    return larger


def _enlarge_shape(sample: Any) -> None:
    """Tell a data sample of mmengine the new size of its image."""
    before = getattr(sample, 'img_shape', None)
    if before is not None and hasattr(sample, 'set_metainfo'):
        size = [int(a) + b for a, b in zip(before, EXTRA, strict=False)]
        sample.set_metainfo({'img_shape': tuple(size)})


def other_number(batch: Any) -> Any:
    """Return the first image of a batch alone, or a single one twice.

    Args:
        batch: As for :func:`images_of`.

    Raises:
        ValueError: If it cannot be split or doubled.
    """
    batch, length = copy.deepcopy(batch), batch_length(batch)
    found = _first(batch, length) if length > 1 else _twice(batch)
    if batch_length(found) != (1 if length > 1 else 2):
        raise ValueError(
            f'a calibration batch ({type(batch).__name__}) cannot be split '
            'into images: leave out ConstantBranch'
        )
    return found


def _first(value: Any, length: int) -> Any:
    if isinstance(value, dict):
        return {key: _first(item, length) for key, item in value.items()}
    sized = isinstance(value, list | tuple) or (
        isinstance(value, Tensor) and value.dim()
    )
    if sized and len(value) == length:
        return value[:1]
    if isinstance(value, list | tuple):
        return type(value)(_first(item, length) for item in value)
    return value


def _twice(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _twice(item) for key, item in value.items()}
    if isinstance(value, Tensor) and value.dim() and len(value) == 1:
        return torch.cat([value, value])
    if isinstance(value, list) and len(value) == 1:
        (item,) = value
        if isinstance(item, Tensor) and item.dim() == 4:
            return [_twice(item)]
        return [item, copy.deepcopy(item)]
    if isinstance(value, tuple):
        return tuple(_twice(item) for item in value)
    return value


def _walk(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with its images changed."""
    if isinstance(value, Mapping):
        inputs = value.get('inputs', ())
        if isinstance(inputs, Mapping):
            # Models with several inputs name them.
            inputs = {key: _walk(one, change) for key, one in inputs.items()}
            return {**value, 'inputs': inputs}
        return {**value, 'inputs': _walk(inputs, change)}
    if isinstance(value, list | tuple):
        return type(value)(_walk(item, change) for item in value)
    if isinstance(value, Tensor) and value.dim() in (3, 4):
        return change(value)
    return value
