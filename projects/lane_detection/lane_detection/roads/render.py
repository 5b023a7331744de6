"""Render a scene as a photograph."""

from __future__ import annotations

import cv2
import numpy as np

from .ground import Ground, draw_ground, smooth_noise
from .objects import draw_background, draw_cars, draw_hood, draw_roadside
from .scene import Scene

__all__ = ['render']


def render(
    scene: Scene, rng: np.random.Generator, *, scale: float = 0.5
) -> np.ndarray:
    """Draw a scene.

    Args:
        scene: The scene.
        rng: Source of everything that the scene does not define.
        scale: Size of the image relative to the frame of the annotations.

    Returns:
        (h, w, 3) uint8, BGR.
    """
    shape = (
        round(scene.frame.shape[0] * scale),
        round(scene.frame.shape[1] * scale),
    )
    ground, below = draw_ground(scene, rng, shape=shape)
    above = draw_background(
        rng, shape=(ground.first_row, shape[1]), horizon=ground.camera.horizon
    )
    if scene.fog is not None:
        add_fog(scene.fog, ground, above, below)
    picture = np.concatenate([above, below])
    draw_roadside(ground, rng, picture)
    lights = draw_cars(ground, rng, picture)
    picture = light_up(ground, rng, picture, lights)
    draw_hood(scene, rng, picture)
    return photograph(scene, rng, picture)


def add_fog(
    limit: float, ground: Ground, above: np.ndarray, below: np.ndarray
) -> None:
    """Fade into gray with the distance, in place.

    Args:
        limit: Depth in meters at which 63 % of the light is lost.
        ground: Gives the distances.
        above: Sky and skyline.
        below: Ground.
    """
    gray = np.float32(195)
    share = (1 - np.exp(-ground.depth / limit))[..., None]
    below += share * (gray - below)
    above += np.float32(1 - np.exp(-150 / limit)) * (gray - above)


def light_up(
    ground: Ground,
    rng: np.random.Generator,
    picture: np.ndarray,
    lights: list[tuple[float, float, float]],
) -> np.ndarray:
    """Apply daylight, dusk or night."""
    scene = ground.scene
    if scene.light == 'day':
        return picture * np.float32(rng.uniform(0.75, 1.15))
    if scene.light == 'dusk':
        tint = np.array((0.75, 0.65, 0.75)) * rng.uniform(0.7, 1.1)
        return picture * tint.astype(np.float32)
    height, width = picture.shape[:2]
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)
    # Headlights: an ellipse of light on the road ahead.
    away = ((columns - width / 2) / (0.42 * width)) ** 2 + (
        (rows - 0.85 * height) / (0.42 * height)
    ) ** 2
    lit = np.float32(rng.uniform(0.2, 0.35)) + np.float32(
        rng.uniform(0.5, 0.75)
    ) * np.exp(-away)
    tint = np.array((0.8, 0.9, 1.0), np.float32)
    picture = picture * (lit[..., None] * tint)
    for x, y, radius in lights:
        add_glow(picture, (x, y), 4 * radius, (40, 40, 230))
    for _ in range(int(rng.integers(1, 9))):
        spot = rng.uniform((0, 0.1 * height), (width, 0.95 * ground.first_row))
        add_glow(
            picture,
            (spot[0], spot[1]),
            rng.uniform(0.008, 0.03) * width,
            (150, 210, 250),
        )
    return picture


def add_glow(
    picture: np.ndarray,
    center: tuple[float, float],
    radius: float,
    color: tuple[float, float, float],
) -> None:
    """Add a spot of light that fades outwards, in place."""
    x, y = center
    reach = 3 * radius
    top, left = max(int(y - reach), 0), max(int(x - reach), 0)
    part = picture[top : max(int(y + reach), 0), left : max(int(x + reach), 0)]
    if part.size == 0:
        return
    rows = np.arange(part.shape[0], dtype=np.float32)[:, None] + (top - y)
    columns = np.arange(part.shape[1], dtype=np.float32) + (left - x)
    glow = np.exp(-(rows**2 + columns**2) / np.float32(radius) ** 2)
    part += glow[..., None].astype(np.float32) * np.array(color, np.float32)


def photograph(
    scene: Scene, rng: np.random.Generator, picture: np.ndarray
) -> np.ndarray:
    """Add glare, blur, tint and noise, and round to uint8."""
    height, width = picture.shape[:2]
    if scene.glare:
        center = (
            rng.uniform(0.1, 0.9) * width,
            rng.uniform(0.2, 0.6) * height,
        )
        add_glow(
            picture, center, rng.uniform(0.1, 0.25) * width, (170, 190, 200)
        )
        picture = picture * np.float32(0.8) + np.float32(35)
    sigma = rng.uniform(0.35, 0.9) * width / 820
    picture = cv2.GaussianBlur(picture, (3, 3), sigma)
    tint = 1 + rng.uniform(-0.08, 0.08, 3)
    picture *= tint.astype(np.float32)
    noise = rng.standard_normal((height, width), dtype=np.float32)
    strength = (
        rng.uniform(6, 13) if scene.light == 'night' else rng.uniform(2, 6)
    )
    grain = smooth_noise(rng, (height, width), (height // 2, width // 2))
    noise = (noise + 0.5 * grain) * np.float32(strength)
    picture += noise[..., None]
    return picture.clip(0, 255).astype(np.uint8)
