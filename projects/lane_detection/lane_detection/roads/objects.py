"""Draw sky, skyline, trees, guard rails, vehicles and hood."""

from __future__ import annotations

import cv2
import numpy as np

from .ground import Ground, smooth_noise
from .scene import Camera, Car, Scene

__all__ = ['draw_background', 'draw_cars', 'draw_hood', 'draw_roadside']

# Colors above and at the horizon, BGR.
SKIES = (
    ((190, 140, 90), (225, 205, 185)),
    ((200, 195, 190), (225, 222, 220)),
    ((150, 120, 100), (170, 190, 220)),
    ((120, 115, 110), (190, 190, 195)),
)


def draw_background(
    rng: np.random.Generator, *, shape: tuple[int, int], horizon: float
) -> np.ndarray:
    """Draw sky and skyline.

    Args:
        rng: Source of colors and shapes.
        shape: Height (of the part above the ground) and width in pixels.
        horizon: Row of the horizon.

    Returns:
        ``shape`` + (3,) float32, BGR.
    """
    height, width = shape
    high, low = np.array(SKIES[rng.integers(len(SKIES))], dtype=np.float32)
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    picture = np.repeat(high + (low - high) * rows, width, axis=1)
    clouds = smooth_noise(rng, shape, (5, 9)) * rng.uniform(0, 14)
    picture += clouds[..., None]
    for _ in range(int(rng.integers(0, 7))):
        draw_building(rng, picture, horizon)
    draw_treeline(rng, picture, horizon)
    return picture


def draw_building(
    rng: np.random.Generator, picture: np.ndarray, horizon: float
) -> None:
    """Draw a block with rows of windows, in place."""
    height, width = picture.shape[:2]
    left = int(rng.integers(-width // 10, width))
    size = int(rng.integers(width // 40, width // 8))
    top = int(horizon * rng.uniform(0.2, 0.95))
    window = picture[top:height, max(left, 0) : max(left + size, 0)]
    window[:] = rng.uniform(60, 190) + rng.uniform(-20, 20, 3)
    step = int(rng.integers(4, 9))
    window[1::step, ::2] *= rng.uniform(0.6, 0.9)


def draw_treeline(
    rng: np.random.Generator, picture: np.ndarray, horizon: float
) -> None:
    """Draw hills or trees of random height along the horizon, in place."""
    height, width = picture.shape[:2]
    rough = smooth_noise(rng, (1, width), (1, int(rng.integers(4, 14))))
    ragged = smooth_noise(rng, (1, width), (1, 90))
    tops = horizon * (
        rng.uniform(0.02, 0.3) * np.abs(rough)
        + rng.uniform(0, 0.05) * np.abs(ragged)
    )
    first = max(int(horizon - tops.max()), 0)
    rows = np.arange(first, height, dtype=np.float32)[:, None]
    mask = (rows > horizon - tops).astype(np.float32)[..., None]
    color = np.array((45, 75, 55), np.float32) * rng.uniform(0.5, 1.6)
    grain = smooth_noise(
        rng, (height - first, width), (max((height - first) // 3, 1), 160)
    )
    part = picture[first:]
    part += mask * (color * (1 + 0.3 * grain)[..., None] - part)


def draw_roadside(
    ground: Ground, rng: np.random.Generator, picture: np.ndarray
) -> None:
    """Draw guard rails and trees along the road, in place."""
    scene, camera = ground.scene, ground.camera
    for side, edge in zip((-1, 1), scene.edges, strict=True):
        if rng.random() < 0.3:
            draw_rail(ground, rng, picture, edge + side * 0.5)
        if rng.random() > 0.5:
            continue
        depths = np.sort(rng.uniform(12, 90, int(rng.integers(2, 8))))[::-1]
        for depth in depths:
            lateral = (
                edge
                + side * rng.uniform(1.5, 9)
                + scene.curve.lateral(float(depth))
            )
            draw_tree(rng, picture, camera, lateral, float(depth))


def draw_rail(
    ground: Ground,
    rng: np.random.Generator,
    picture: np.ndarray,
    position: float,
) -> None:
    """Draw a guard rail that follows the road."""
    depth = np.geomspace(3, 150, 40)
    lateral = position + ground.scene.curve.lateral(depth)
    low, high = (
        ground.camera.project(lateral, depth, up) for up in (0.45, 0.75)
    )
    tone = float(rng.uniform(90, 190))
    band = np.concatenate([low, high[::-1]]).clip(-20000, 20000)
    cv2.fillPoly(picture, [band.round().astype(np.int32)], (tone, tone, tone))
    line = high.clip(-20000, 20000).round().astype(np.int32)
    cv2.polylines(picture, [line], False, (0.6 * tone,) * 3, 1)


def draw_tree(
    rng: np.random.Generator,
    picture: np.ndarray,
    camera: Camera,
    lateral: float,
    depth: float,
) -> None:
    """Draw a trunk or pole and, mostly, a crown."""
    scale = camera.focal / depth
    x, y = (
        float(v)
        for v in camera.project(np.float64(lateral), np.float64(depth))
    )
    tall = rng.uniform(4, 9) * scale
    if not -tall < x < picture.shape[1] + tall:
        return
    foot, top = (round(x), round(y)), (round(x), round(y - tall))
    dark = float(rng.uniform(30, 80))
    cv2.line(
        picture,
        foot,
        top,
        (dark, dark, 1.1 * dark),
        max(round(0.25 * scale), 1),
    )
    if rng.random() < 0.25:
        return
    color = np.array((40, 80, 55)) * rng.uniform(0.5, 1.6)
    for _ in range(5):
        spot = rng.uniform((-0.25, 0.5), (0.25, 1.0)) * tall
        radius = rng.uniform(0.12, 0.28) * tall
        cv2.circle(
            picture,
            (round(x + spot[0]), round(y - spot[1])),
            max(round(radius), 1),
            tuple(float(c) for c in color * rng.uniform(0.8, 1.25)),
            -1,
        )


def draw_cars(
    ground: Ground, rng: np.random.Generator, picture: np.ndarray
) -> list[tuple[float, float, float]]:
    """Draw the vehicles, far ones first, in place.

    Returns:
        x, y and radius in pixels of each tail light.
    """
    lights = []
    for car in ground.scene.cars:
        lights += draw_car(ground, rng, picture, car)
    return lights


def draw_car(
    ground: Ground, rng: np.random.Generator, picture: np.ndarray, car: Car
) -> list[tuple[float, float, float]]:
    """Draw shadow, wheels, body, rear window and lights of a vehicle."""
    camera = ground.camera
    scale = camera.focal / car.depth
    lateral = car.position + ground.scene.curve.lateral(car.depth)
    x, y = (
        float(v)
        for v in camera.project(np.float64(lateral), np.float64(car.depth))
    )
    half, tall = car.width / 2 * scale, car.height * scale

    def quad(
        low: float,
        high: float,
        wide: float,
        narrow: float,
        color: tuple[float, ...],
    ) -> None:
        points = [
            (x - wide * half, y - low * tall),
            (x + wide * half, y - low * tall),
            (x + narrow * half, y - high * tall),
            (x - narrow * half, y - high * tall),
        ]
        cv2.fillConvexPoly(
            picture, np.array(points).round().astype(np.int32), color
        )

    body = tuple(float(c) for c in car.color)
    shadow = (round(1.15 * half), max(round(0.09 * tall), 1))
    cv2.ellipse(
        picture,
        (round(x), round(y)),
        shadow,
        0,
        0,
        360,
        (25.0, 25.0, 25.0),
        -1,
    )
    quad(0.0, 0.2, 0.95, 0.95, (20.0, 20.0, 20.0))
    quad(0.12, 0.58, 1.0, 1.0, body)
    roof = 0.98 if car.height > 2 else 0.72
    quad(0.58, 1.0, 0.97, roof, tuple(0.9 * c for c in body))
    glass = float(rng.uniform(25, 90))
    quad(0.6, 0.92, 0.85, roof - 0.08, (glass, glass, glass))
    quad(0.22, 0.32, 0.3, 0.3, (200.0, 200.0, 200.0))
    radius = max(0.06 * tall, 1.0)
    lights = []
    for side in (-0.85, 0.85):
        spot = (x + side * half, y - 0.48 * tall)
        cv2.circle(
            picture,
            (round(spot[0]), round(spot[1])),
            round(radius),
            (30.0, 30.0, 200.0),
            -1,
        )
        lights.append((*spot, radius))
    return lights


def draw_hood(
    scene: Scene, rng: np.random.Generator, picture: np.ndarray
) -> None:
    """Draw the own car's hood over the bottom, in place."""
    if not scene.hood:
        return
    height, width = picture.shape[:2]
    tone = float(rng.uniform(10, 90))
    axes = (
        round(width * rng.uniform(0.42, 0.6)),
        round(2 * scene.hood * height),
    )
    center = (width // 2, round(height * (1 + scene.hood)))
    cv2.ellipse(picture, center, axes, 0, 180, 360, (tone, tone, tone), -1)
    shine = tuple(float(c) for c in tone + rng.uniform(10, 60, 3))
    cv2.ellipse(
        picture, center, (axes[0] - 4, axes[1] - 4), 0, 200, 340, shine, 2
    )
