"""A data pipeline whose images are decoded, resized or corrupted otherwise.

Nothing is asked about the names of its transforms. The image is what stands
under ``img``; the transform that brings it has read it, and one whose result
is, bit for bit, a plain resize of its input is the resizing one. So the same
noise reaches mmdet's, mmseg's and a project's own transforms, and boxes, masks
and scale factors stay as the pipeline computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from taskptq.robustness.arrays import Array
from taskptq.robustness.colors import round_trip
from taskptq.robustness.corruptions import corrupt, image_seed
from taskptq.robustness.decoding import decode, is_jpeg
from taskptq.robustness.names import Noise, parse_noises
from taskptq.robustness.resizing import resize, resize_method_of

__all__ = [
    'MixedPipeline',
    'NoisyPipeline',
    'image_name',
    'read_noise',
    'shift_window',
]

Results = dict[str, Any]
NOT_JPEG = 'the images are not JPEG files'
NOT_DECODED_ALONE = (
    'what reads the images does more than decode them (another size, '
    'orientation or color order)'
)
NOT_RESIZED = 'no transform of the pipeline resizes the images'


def image_name(results: Results) -> str:
    """Return what tells an image from others on every machine."""
    path = results.get('img_path')
    if isinstance(path, str):
        return path.replace('\\', '/').rpartition('/')[2]
    return str(results.get('img_id', results.get('sample_idx', '')))


def as_bytes(image: Array) -> Array | None:
    """Return an image as uint8, None if it has other values."""
    if image.dtype == np.uint8:
        return image
    rounded = image.clip(0, 255).astype(np.uint8)
    return rounded if np.array_equal(rounded, image) else None


def shift_window(image: Array, *, pixels: int) -> Array:
    """Let the window of an image begin some pixels right and below.

    The last row and column repeat, so that the size stays.
    """
    return np.pad(
        image[pixels:, pixels:], ((0, pixels), (0, pixels), (0, 0)), 'edge'
    )


def decode_again(results: Results, decoder: str) -> tuple[Array, str]:
    """Read the file of an image with another decoder.

    Args:
        results: Of the pipeline, with ``img`` and ``img_path``.
        decoder: See :mod:`taskptq.robustness.decoding`.

    Returns:
        The image, and why it is unchanged ('' if it was decoded again).
    """
    image = results['img']
    path = results.get('img_path')
    if not isinstance(path, str):
        return image, 'the images have no img_path'
    data = Path(path).read_bytes()
    if not is_jpeg(data):
        return image, NOT_JPEG
    reference = decode(data, 'opencv')
    for order in (slice(None), slice(None, None, -1)):
        if np.array_equal(reference[..., order], image):
            other = decode(data, decoder)[..., order]
            return np.ascontiguousarray(other, image.dtype), ''
    return image, NOT_DECODED_ALONE


def read_noise(results: Results, noise: Noise, *, seed: int) -> str:
    """Apply a noise to an image that was just read (BGR).

    Args:
        results: Of the pipeline; ``img`` is replaced.
        noise: Any image noise but ``resize``.
        seed: Seed of the run.

    Returns:
        Why the image is unchanged, '' if it was treated.
    """
    if noise.kind == 'decode':
        results['img'], reason = decode_again(results, noise.option)
        return reason
    image = as_bytes(results['img'])
    if image is None or image.ndim != 3 or image.shape[2] != 3:
        return 'the images are not (H, W, 3) of 0 to 255'
    dtype = results['img'].dtype
    if noise.kind == 'crop':
        image = shift_window(image, pixels=int(noise.option))
    elif noise.kind == 'color':
        image = round_trip(image[..., ::-1], noise.option)[..., ::-1]
    else:
        image = corrupt(
            np.ascontiguousarray(image[..., ::-1]),
            name=noise.kind,
            severity=int(noise.option),
            seed=image_seed(image_name(results), noise=noise.name, seed=seed),
        )[..., ::-1]
    results['img'] = np.ascontiguousarray(image, dtype)
    return ''


class NoisyPipeline:
    """The transforms of a data set, with noises on the images.

    Args:
        steps: Built transforms.
        noises: Image noises, applied in the order decode, others, resize.
        seed: Seed of the random ones; each image has its own.

    Attributes:
        changed: Number of images in which a noise changed a pixel.
        reasons: Why images stayed as they were.
    """

    def __init__(
        self,
        steps: Sequence[Callable[[Results], Results | None]],
        *,
        noises: Sequence[Noise],
        seed: int = 0,
    ) -> None:
        # Read by what looks into a data set's pipeline, as mmengine's Compose.
        self.transforms = list(steps)
        self.on_read = sorted(
            (noise for noise in noises if noise.kind != 'resize'),
            key=lambda noise: noise.kind != 'decode',
        )
        self.method = next(
            (noise.option for noise in noises if noise.kind == 'resize'), ''
        )
        self.seed = seed
        self.changed = 0
        self.reasons: set[str] = set()
        self._resizes: dict[int, bool] = {}

    def __call__(self, results: Results) -> Results | None:
        """Run the transforms on the results of a data set's item."""
        touched = False
        current: Results | None = results
        for number, step in enumerate(self.transforms):
            before = results.get('img')
            current = step(results)
            if current is None:
                return None
            results = current
            image = results.get('img')
            if not isinstance(image, np.ndarray):
                continue
            if before is None:
                touched |= self._on_read(results)
            elif self.method and isinstance(before, np.ndarray):
                touched |= self._on_change(number, before, results)
        if self.method and not any(self._resizes.values()):
            self.reasons.add(NOT_RESIZED)
        self.changed += touched
        return current

    def _on_read(self, results: Results) -> bool:
        """Apply all noises but the resize; return whether a pixel changed."""
        before = results['img']
        for noise in self.on_read:
            reason = read_noise(results, noise, seed=self.seed)
            if reason:
                self.reasons.add(reason)
        return not np.array_equal(before, results['img'])

    def _on_change(self, number: int, before: Array, results: Results) -> bool:
        """Resize otherwise, if the transform resized."""
        after = results['img']
        if before.shape[:2] == after.shape[:2] or before.ndim != after.ndim:
            return False
        source, result = as_bytes(before), as_bytes(after)
        if source is None or result is None:
            return False
        if number not in self._resizes:
            method = resize_method_of(source, result)
            self._resizes[number] = method is not None
        if not self._resizes[number]:
            return False
        size = (after.shape[0], after.shape[1])
        resized = resize(source, size, method=self.method)
        results['img'] = np.ascontiguousarray(resized, after.dtype)
        return not np.array_equal(resized, result)


class MixedPipeline:
    """The transforms of a data set, with one of several noises on each image.

    Args:
        steps: Built transforms.
        names: Names of noises, joined by ``+`` where they act together;
            ``clean`` is none.
        seed: Seed of the choice and of random noises.

    Raises:
        ValueError: If a noise is unknown.
    """

    def __init__(
        self,
        steps: Sequence[Callable[[Results], Results | None]],
        *,
        names: Sequence[str],
        seed: int = 0,
    ) -> None:
        self.transforms = list(steps)
        self.seed = seed
        self.choices = [
            NoisyPipeline(
                steps,
                noises=() if name == 'clean' else parse_noises(name),
                seed=seed,
            )
            for name in names
        ]

    def __call__(self, results: Results) -> Results | None:
        """Run the transforms on the results of a data set's item."""
        draw = image_seed(image_name(results), noise='choice', seed=self.seed)
        return self.choices[draw % len(self.choices)](results)
