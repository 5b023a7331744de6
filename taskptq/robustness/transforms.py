"""The image noises as transforms that any config can name.

``dict(type='taskptq.ImageNoise', noises=['decode=fast-dct', 'fog=3'])`` stands
after the transform that reads the image; ``dict(type='taskptq.NoisyResize',
method='opencv-nearest', step=dict(type='Resize', scale=(640, 640)))`` in the
place of the one that resizes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.registry import TRANSFORMS as HOST_TRANSFORMS

from taskptq.registry import TRANSFORMS
from taskptq.robustness.corruptions import image_seed
from taskptq.robustness.names import parse_noise
from taskptq.robustness.pipeline import (
    NoisyPipeline,
    image_name,
    read_noise,
)
from taskptq.robustness.resizing import METHODS

__all__ = ['ImageNoise', 'NoisyResize']


@TRANSFORMS.register_module()
class ImageNoise:
    """Changes an image that was just read (BGR), and nothing else.

    Args:
        noises: Names such as ``decode=ffmpeg``, ``color=nv12``, ``fog=3``.
        choose: Apply one of them to each image, chosen by the image's name,
            instead of all; the name ``clean`` leaves the image as it is.
        seed: Seed of the random noises and of the choice.

    Required keys: img, img_path for ``decode``. Changed: img.

    Raises:
        ValueError: If a noise is unknown, or acts elsewhere.
    """

    def __init__(
        self,
        *,
        noises: Sequence[str],
        choose: bool = False,
        seed: int = 0,
    ) -> None:
        if not noises:
            raise ValueError('noises is empty: name at least one noise')
        self.noises = [
            None if name == 'clean' else parse_noise(name) for name in noises
        ]
        for noise in filter(None, self.noises):
            if noise.on_model or noise.kind == 'resize':
                raise ValueError(
                    f'{noise.name} does not act on an image that was just '
                    'read: for a resize use taskptq.NoisyResize, for a model '
                    'taskptq.NoiseHook'
                )
        self.choose = choose
        self.seed = seed

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change the image."""
        noises = self.noises
        if self.choose:
            draw = image_seed(
                image_name(results), noise='choice', seed=self.seed
            )
            noises = [noises[draw % len(noises)]]
        for noise in noises:
            if noise is not None:
                read_noise(results, noise, seed=self.seed)
        return results


@TRANSFORMS.register_module()
class NoisyResize:
    """Resizes by another method what a transform resizes.

    Args:
        step: The transform, or its config.
        method: See :mod:`taskptq.robustness.resizing`.

    Required keys: img. Changed: as the transform does.

    Raises:
        ValueError: If the method is unknown.
    """

    def __init__(self, *, step: Any, method: str) -> None:
        if method not in METHODS:
            parse_noise(f'resize={method}')
        if isinstance(step, dict):
            step = HOST_TRANSFORMS.build(step)
        self._pipeline = NoisyPipeline(
            [step], noises=[parse_noise(f'resize={method}')]
        )

    def __call__(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Run the transform, and resize otherwise."""
        if not isinstance(results.get('img'), np.ndarray):
            raise KeyError('NoisyResize needs an image under "img"')
        return self._pipeline(results)
