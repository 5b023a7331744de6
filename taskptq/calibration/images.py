"""Find calibration images of a single color."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor


def constant_images(batches: Sequence[Any]) -> tuple[int, int]:
    """Count the images that are constant in each channel.

    Args:
        batches: Collated batches: tensors (B, C, H, W), lists of images
            (C, H, W), or dicts that hold either as ``inputs``. Anything
            else is ignored.

    Returns:
        Number of images of a single color, and of all images.
    """
    found = [_is_constant(x) for batch in batches for x in _images(batch)]
    return sum(found), len(found)


def _images(batch: Any) -> Iterator[Tensor]:
    if isinstance(batch, Mapping):
        batch = batch.get('inputs', ())
    if isinstance(batch, Tensor):
        # Other ranks hold tokens or vectors, not images.
        yield from batch if batch.dim() == 4 else ()
    elif isinstance(batch, list | tuple):
        yield from (x for x in batch if isinstance(x, Tensor) and x.dim() == 3)


def _is_constant(image: Tensor) -> bool:
    """Whether each channel of an image, (C, H, W), is constant."""
    if image.numel() == 0 or image[0].numel() == 1:
        return False
    low, high = image.flatten(1).aminmax(dim=1)
    return bool((low == high).all())
