"""Random colors, blur and noise."""

from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS

__all__ = ['LanePhotometric']


@TRANSFORMS.register_module()
class LanePhotometric(BaseTransform):
    """Change colors of a uint8 BGR image; lanes stay where they are.

    Args:
        brightness: Largest change of all channels, of 255.
        contrast: Largest relative change of the contrast.
        gamma: Largest exponent; the smallest is its inverse.
        color: Largest change of a single channel, of 255.
        saturation: Largest relative change of the saturation.
        blur_prob: Probability of a small Gaussian blur.
        noise: Largest standard deviation of noise, of 255.

    Required keys: img. Changed: img.
    """

    def __init__(
        self,
        *,
        brightness: float = 25.0,
        contrast: float = 0.25,
        gamma: float = 1.3,
        color: float = 8.0,
        saturation: float = 0.4,
        blur_prob: float = 0.15,
        noise: float = 6.0,
    ) -> None:
        self.brightness = brightness
        self.contrast = contrast
        self.gamma = gamma
        self.color = color
        self.saturation = saturation
        self.blur_prob = blur_prob
        self.noise = noise

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change the image."""
        image = cv2.LUT(results['img'], self.table())
        image = self.saturate(image)
        if random.random() < self.blur_prob:
            image = cv2.GaussianBlur(image, (3, 3), random.uniform(0.4, 1.2))
        results['img'] = self.add_noise(image)
        return results

    def table(self) -> np.ndarray:
        """Draw the curve of each channel, (1, 256, 3) uint8."""
        values = np.linspace(0, 1, 256)
        values = values ** (self.gamma ** random.uniform(-1, 1)) * 255
        values = (values - 128) * (
            1 + random.uniform(-self.contrast, self.contrast)
        ) + 128
        values += random.uniform(-self.brightness, self.brightness)
        tints = [random.uniform(-self.color, self.color) for _ in range(3)]
        table = values[:, None] + np.array(tints)
        return table.clip(0, 255).round().astype(np.uint8)[None]

    def saturate(self, image: np.ndarray) -> np.ndarray:
        """Move colors towards or away from gray."""
        share = 1 + random.uniform(-self.saturation, self.saturation)
        gray = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        gray = cv2.cvtColor(gray, cv2.COLOR_GRAY2BGR)
        return cv2.addWeighted(image, share, gray, 1 - share, 0)

    def add_noise(self, image: np.ndarray) -> np.ndarray:
        """Add noise of a random strength."""
        strength = random.uniform(0, self.noise)
        if strength < 1:
            return image
        rng = np.random.default_rng(random.getrandbits(32))
        noise = rng.standard_normal(image.shape, dtype=np.float32)
        noisy = image + noise * np.float32(strength)
        return noisy.clip(0, 255).astype(np.uint8)
