"""More images from the calibration images, for steps on the whole network.

A few dozen images are soon learned by heart. The float model labels any
image, so that zoomed, shifted and mirrored ones are as good as new ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.reconstruction.capture.cache import stored_bytes
from taskptq.reconstruction.capture.nesting import flatten

__all__ = ['channels_last', 'kept_in_memory', 'vary_images']

# Largest shift, as a share of half the image.
MAX_SHIFT = 0.25
# Grayscale, colour, and colour with transparency.
IMAGE_CHANNELS = (1, 3, 4)


def vary_images(batch: Any, *, strength: float) -> Any:
    """Return a batch with its images zoomed, shifted and mirrored at random.

    Each image is zoomed by a factor between exp(-strength) and
    exp(strength), shifted by up to an eighth of its size, and mirrored left
    to right half of the time; borders are filled by reflection. Sizes and
    types stay. Draws from the global generator.

    Args:
        batch: Tensor of images (N, C, H, W) or (C, H, W), or a batch of
            mmengine, whose ``inputs`` are varied; others are returned as
            they are.
        strength: Largest logarithm of the zoom, at least 0.
    """
    if isinstance(batch, Mapping) and 'inputs' in batch:
        varied = vary_images(batch['inputs'], strength=strength)
        return {**batch, 'inputs': varied}
    if isinstance(batch, list | tuple):
        return type(batch)(
            vary_images(item, strength=strength) for item in batch
        )
    if not isinstance(batch, Tensor):
        return batch
    if batch.dim() == 4 and batch.shape[1] in IMAGE_CHANNELS:
        return torch.stack([_vary(image, strength) for image in batch])
    if batch.dim() == 3 and batch.shape[0] in IMAGE_CHANNELS:
        return _vary(batch, strength)
    return batch


def _vary(image: Tensor, strength: float) -> Tensor:
    """Vary one image, (C, H, W)."""
    draws = torch.rand(4).tolist()
    zoom = math.exp(strength * (2 * draws[0] - 1))
    mirror = -1.0 if draws[1] < 0.5 else 1.0
    shifts = [MAX_SHIFT * (2 * draw - 1) for draw in draws[2:]]
    # From places of the result, in [-1, 1], to those of the image
    places = torch.tensor(
        [[mirror / zoom, 0.0, shifts[0]], [0.0, 1 / zoom, shifts[1]]],
        device=image.device,
    )
    grid = F.affine_grid(places[None], [1, *image.shape], align_corners=False)
    varied = F.grid_sample(
        image[None].float(),
        grid,
        mode='bilinear',
        padding_mode='reflection',
        align_corners=False,
    )[0]
    if not image.is_floating_point():
        varied = varied.round()
    return varied.to(image.dtype)


def kept_in_memory(batches: Sequence[Any], *, max_bytes: int) -> Sequence[Any]:
    """Return the batches, read once if they fit.

    Args:
        batches: Calibration batches, perhaps read from files at each access.
        max_bytes: Memory that they may take, judged by the first.
    """
    leaves = flatten(batches[0])[0]
    size = sum(stored_bytes(leaf) for leaf in leaves)
    if size * len(batches) > max_bytes:
        return batches
    return [batches[number] for number in range(len(batches))]


@contextmanager
def channels_last(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Keep the weights of convolutions with channels last meanwhile.

    Values are the same; depthwise convolutions run several times as fast on
    a CPU.

    Args:
        model: Its parameters change in place.
        enabled: Do nothing otherwise.
    """
    found = [p for p in model.parameters() if enabled and p.dim() == 4]
    for parameter in found:
        parameter.data = parameter.data.contiguous(
            memory_format=torch.channels_last
        )
    try:
        yield
    finally:
        for parameter in found:
            parameter.data = parameter.data.contiguous()
