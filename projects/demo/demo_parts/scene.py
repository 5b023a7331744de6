"""One picture of the demo: parts on a workbench.

Bolts, nuts and washers lie on a grained, unevenly lit bench, overlap and
throw shadows; stray chips and sensor noise make them hard to tell apart.
"""

from __future__ import annotations

import cv2
import numpy as np

from demo_parts.shapes import (
    CLASSES,
    Placement,
    Window,
    part_mask,
    polygon_mask,
    shading,
    window_around,
)

WIDTH, HEIGHT = 160, 128  # pixels
# Least difference of brightness between a part and the bench, of 255.
MIN_CONTRAST = 45.0
# Room for a part's shadow, in pixels.
MARGIN = 8
# Parts whose boxes overlap by more (of the smaller box) are left out.
MAX_OVERLAP = 0.3
Box = tuple[int, int, int, int]


def draw_bench(rng: np.random.Generator) -> np.ndarray:
    """Draw an empty bench: grain, stains and light.

    Returns:
        (HEIGHT, WIDTH, 3), float32, BGR in about [0, 255].
    """
    base = rng.uniform(70, 150) + rng.uniform(-14, 14, size=3)
    light = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    for cells, strength in ((3, 22.0), (8, 12.0), (24, 8.0)):
        light += smooth_noise(rng, cells, shape=light.shape) * strength
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    x = np.arange(WIDTH, dtype=np.float32)[None] * np.float32(np.cos(angle))
    y = np.arange(HEIGHT, dtype=np.float32)[:, None] * np.float32(
        np.sin(angle)
    )
    phase = (x + y) * np.float32(2 * np.pi / period)
    phase += 2 * smooth_noise(rng, 4, shape=light.shape)
    light += np.sin(phase) * np.float32(rng.uniform(2, 9))
    return light[..., None] + base.astype(np.float32)


def smooth_noise(
    rng: np.random.Generator, cells: int, *, shape: tuple[int, ...]
) -> np.ndarray:
    """Return smooth noise of about unit variance.

    Args:
        rng: Source of the noise.
        cells: Independent values along each side.
        shape: Height and width, in pixels.
    """
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    size = (shape[1], shape[0])
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def random_placement(rng: np.random.Generator, kind: str) -> Placement:
    """Draw position, size and angle of a part."""
    size = rng.uniform(14, 22) if kind == 'bolt' else rng.uniform(10, 15)
    low, high = {
        'bolt': (0.34, 0.46),
        'nut': (0.34, 0.44),
        'washer': (0.58, 0.7),
    }[kind]
    margin = 0.8 * size
    return Placement(
        center=(
            rng.uniform(margin, WIDTH - margin),
            rng.uniform(margin, HEIGHT - margin),
        ),
        size=size,
        angle=rng.uniform(0, 2 * np.pi),
        ratio=rng.uniform(low, high),
    )


def bounding_box(mask: np.ndarray, *, window: Window) -> Box:
    """Return x, y, width, height in pixels of what a mask covers.

    Args:
        mask: Coverage of each pixel of the window.
        window: Where the mask lies in the image.
    """
    x, y, width, height = cv2.boundingRect((mask > 0.3).astype(np.uint8))
    rows, columns = window
    return x + columns.start, y + rows.start, width, height


def overlap(box: Box, other: Box) -> float:
    """Return the intersection of two boxes over the smaller one's area."""
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    smaller = min(box[2] * box[3], other[2] * other[3])
    return max(width, 0) * max(height, 0) / max(smaller, 1)


def add_part(
    image: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    *,
    window: Window,
    pattern: np.ndarray | float = 1.0,
) -> None:
    """Lay a part and its shadow onto the bench, in place.

    Args:
        image: (HEIGHT, WIDTH, 3).
        mask: Coverage of each pixel of the window, in [0, 1].
        rng: Source of color and light.
        window: The part's surroundings.
        pattern: Brightness factor of each pixel of the window.
    """
    there = image[window]
    color = rng.uniform(85, 190) + rng.uniform(-12, 12, size=3)
    color = _contrasting(color, float(there.mean()))
    shadow = np.zeros_like(mask)
    shadow[2:, 2:] = mask[:-2, :-2]
    shadow = cv2.GaussianBlur(shadow, (0, 0), 1.5)
    there *= 1 - 0.35 * shadow[..., None]
    # Blurring the mask makes its rim darker: parts look rounded.
    relief = cv2.GaussianBlur(mask, (0, 0), 2.0)
    grain = 0.05 * smooth_noise(rng, 5, shape=mask.shape)
    light = (0.65 + 0.45 * relief) * pattern + grain
    part = color.astype(np.float32) * light[..., None].astype(np.float32)
    there += mask[..., None] * (part - there)


def _contrasting(color: np.ndarray, bench: float) -> np.ndarray:
    """Move a color away from the bench's brightness, so that it shows."""
    distance = float(color.mean()) - bench
    if abs(distance) >= MIN_CONTRAST:
        return color
    away = MIN_CONTRAST if distance >= 0 else -MIN_CONTRAST
    return color - distance + away


def scatter(image: np.ndarray, rng: np.random.Generator) -> None:
    """Scatter chips, which belong to no class, in place."""
    for _ in range(int(rng.integers(2, 7))):
        x, y = rng.uniform((0, 0), (WIDTH, HEIGHT)).tolist()
        points = np.array([x, y]) + rng.uniform(-8, 8, size=(3, 2))
        window = window_around(
            (x, y), radius=8 + MARGIN, width=WIDTH, height=HEIGHT
        )
        mask = polygon_mask(points, window=window)
        add_part(image, mask, rng, window=window)


def make_image(
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[tuple[int, Box]]]:
    """Draw one image.

    Returns:
        The image, (HEIGHT, WIDTH, 3), uint8 BGR; and (class index, box as x,
        y, width, height) of each part.
    """
    image = draw_bench(rng)
    scatter(image, rng)
    parts: list[tuple[int, Box]] = []
    for _ in range(int(rng.integers(4, 11))):
        label = int(rng.integers(len(CLASSES)))
        kind = CLASSES[label]
        place = random_placement(rng, kind)
        window = window_around(
            place.center,
            radius=1.1 * place.size + MARGIN,
            width=WIDTH,
            height=HEIGHT,
        )
        mask = part_mask(kind, place, window=window)
        box = bounding_box(mask, window=window)
        if any(overlap(box, other) > MAX_OVERLAP for _, other in parts):
            continue
        pattern = shading(kind, place, window=window)
        add_part(image, mask, rng, window=window, pattern=pattern)
        parts.append((label, box))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image += noise * np.float32(rng.uniform(3, 7))
    return image.clip(0, 255).round().astype(np.uint8), parts
