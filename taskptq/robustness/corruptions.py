"""The corruptions of ImageNet-C on images of any size.

Computed by the package imagecorruptions-imaug (Michaelis et al., "Benchmarking
Robustness in Object Detection", 2019). It refuses images below 32 px and
draws from global random states; both are handled here, so that an image looks
the same in every run and process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np

from taskptq.robustness.arrays import Array
from taskptq.robustness.packages import optional_package

__all__ = [
    'CORRUPTIONS',
    'GROUPS',
    'SEVERITIES',
    'VALIDATION',
    'corrupt',
    'image_seed',
]

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
        'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
        'weather': ('snow', 'frost', 'fog', 'brightness'),
        'digital': (
            'contrast',
            'elastic_transform',
            'pixelate',
            'jpeg_compression',
        ),
    }
)
# The fifteen that mPC averages, and four more to choose settings with.
CORRUPTIONS = tuple(name for names in GROUPS.values() for name in names)
VALIDATION = ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')
SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 32
# They draw from generators of their own, not from numpy's global one.
TAKE_SEED = ('impulse_noise', 'glass_blur')


def image_seed(image_id: object, *, noise: str, seed: int = 0) -> int:
    """Return the seed of a noise on an image.

    Args:
        image_id: Name or number of the image.
        noise: Name of the noise, with its severity.
        seed: Seed of the whole run.

    Returns:
        0 to 2**32 - 1.
    """
    # A checksum's low bits would be alike for names that are.
    text = f'{seed}/{noise}/{image_id}'.encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), 'big')


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed numpy's global state for a while."""
    state = np.random.get_state()  # noqa: NPY002 - what the package draws from
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def corrupt(image: Array, *, name: str, severity: int, seed: int) -> Array:
    """Corrupt an image.

    Args:
        image: (H, W, 3) uint8, RGB.
        name: One of ``CORRUPTIONS`` or ``VALIDATION``.
        severity: 0 (nothing) to 5.
        seed: See :func:`image_seed`.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: If there is no such corruption or severity.
        MissingNoisePackageError: If imagecorruptions is not installed.
    """
    if name not in (*CORRUPTIONS, *VALIDATION):
        raise ValueError(
            f'corruption {name!r} is unknown: choose one of '
            f'{", ".join((*CORRUPTIONS, *VALIDATION))}'
        )
    if severity not in (0, *SEVERITIES):
        raise ValueError(f'severity {severity!r} of {name} must be 0 to 5')
    if severity == 0:
        return image
    package = optional_package('imagecorruptions', noise=name)
    height, width = image.shape[:2]
    below = max(0, LEAST_SIDE - height)
    beside = max(0, LEAST_SIDE - width)
    padded = np.pad(image, ((0, below), (0, beside), (0, 0)), 'symmetric')
    options = {'seed': seed} if name in TAKE_SEED else {}
    with _global_seed(seed):
        found: Array = package.corrupt(
            np.ascontiguousarray(padded),
            severity=severity,
            corruption_name=name,
            **options,
        )
    return np.ascontiguousarray(found[:height, :width])
