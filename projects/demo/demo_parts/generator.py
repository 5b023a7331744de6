"""A detection data set out of nothing but a seed: parts on a workbench.

Bolts, nuts and washers lie on a grained, unevenly lit bench, overlap and
throw shadows; stray chips and sensor noise make them hard to tell apart.
Images and boxes depend on the seed alone.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from demo_parts.shapes import CLASSES, Placement, part_mask, thread_pattern

WIDTH, HEIGHT = 160, 128  # pixels
# Images of each split. The seed of image i is (SEED, split, i): images of
# two splits never share one.
SPLITS = {'train': 400, 'test': 100}
SEED = 2026
# Least difference of brightness between a part and the bench, of 255.
MIN_CONTRAST = 40.0
# Raise it whenever the images change: older sets are then made anew.
VERSION = 2


def draw_bench(rng: np.random.Generator) -> np.ndarray:
    """Draw an empty bench: grain, stains and light.

    Returns:
        (HEIGHT, WIDTH, 3), float32, BGR in about [0, 255].
    """
    base = rng.uniform(70, 150) + rng.uniform(-14, 14, size=3)
    image = np.empty((HEIGHT, WIDTH, 3), dtype=np.float32)
    image[:] = base
    for cells, strength in ((3, 22.0), (8, 12.0), (24, 8.0)):
        image += _smooth_noise(rng, cells)[..., None] * strength
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    waves = np.sin(
        2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period
        + 2 * _smooth_noise(rng, 4)
    )
    return image + waves[..., None] * rng.uniform(2, 9)


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def random_placement(rng: np.random.Generator, kind: str) -> Placement:
    """Draw position, size and angle of a part."""
    is_bolt = kind == 'bolt'
    size = rng.uniform(12, 22) if is_bolt else rng.uniform(7, 14)
    margin = 0.7 * size
    return Placement(
        center=(
            rng.uniform(margin, WIDTH - margin),
            rng.uniform(margin, HEIGHT - margin),
        ),
        size=size,
        angle=rng.uniform(0, 2 * np.pi),
        ratio=rng.uniform(0.28, 0.4) if is_bolt else rng.uniform(0.42, 0.62),
    )


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return x, y, width, height in pixels of what a mask covers."""
    x, y, width, height = cv2.boundingRect((mask > 0.3).astype(np.uint8))
    return int(x), int(y), int(width), int(height)


def overlap(box: tuple[int, ...], other: tuple[int, ...]) -> float:
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
    pattern: np.ndarray | float = 1.0,
) -> None:
    """Lay a part and its shadow onto the bench, in place.

    Args:
        image: (HEIGHT, WIDTH, 3).
        mask: (HEIGHT, WIDTH), coverage in [0, 1].
        rng: Source of color and light.
        pattern: Brightness factor of each pixel of the part.
    """
    color = rng.uniform(85, 190) + rng.uniform(-12, 12, size=3)
    grain = 0.05 * _smooth_noise(rng, 16)
    x, y, width, height = bounding_box(mask)
    if not width or not height:
        return
    # Only the part's surroundings change, which is most of the speed.
    window = (
        slice(max(y - 8, 0), y + height + 8),
        slice(max(x - 8, 0), x + width + 8),
    )
    mask, there = mask[window], image[window]
    color = _contrasting(color, float(there.mean()))
    shadow = np.roll(mask, (2, 2), axis=(0, 1))
    shadow = cv2.GaussianBlur(shadow, (0, 0), 1.5)
    there *= 1 - 0.35 * shadow[..., None]
    # Blurring the mask makes its rim darker: parts look rounded.
    relief = cv2.GaussianBlur(mask, (0, 0), 2.0)
    light = (0.65 + 0.45 * relief) * np.broadcast_to(pattern, (HEIGHT, WIDTH))[
        window
    ] + grain[window]
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
        center = rng.uniform((0, 0), (WIDTH, HEIGHT))
        points = center + rng.uniform(-6, 6, size=(3, 2))
        chip = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
        cv2.fillConvexPoly(chip, np.round(points).astype(np.int32), 1.0)
        add_part(image, chip, rng)


def make_image(
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[tuple[int, tuple[int, int, int, int]]]]:
    """Draw one image.

    Returns:
        The image, (HEIGHT, WIDTH, 3), uint8 BGR; and (class index, box as x,
        y, width, height) of each part.
    """
    image = draw_bench(rng)
    scatter(image, rng)
    parts: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(int(rng.integers(4, 11))):
        label = int(rng.integers(len(CLASSES)))
        place = random_placement(rng, CLASSES[label])
        mask = part_mask(CLASSES[label], place, width=WIDTH, height=HEIGHT)
        box = bounding_box(mask)
        if any(overlap(box, other) > 0.3 for _, other in parts):
            continue
        pattern: np.ndarray | float = 1.0
        if CLASSES[label] == 'bolt':
            pattern = thread_pattern(place, width=WIDTH, height=HEIGHT)
        add_part(image, mask, rng, pattern=pattern)
        parts.append((label, box))
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    image += noise * np.float32(rng.uniform(4, 9))
    return image.clip(0, 255).round().astype(np.uint8), parts


def make_split(folder: Path, *, split: str, num_images: int) -> None:
    """Write the images and the COCO annotations of one split."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / split).mkdir(parents=True)
    for index in range(num_images):
        place = list(SPLITS).index(split)
        rng = np.random.default_rng((SEED, place, index))
        image, parts = make_image(rng)
        name = f'{split}/{index:04d}.png'
        cv2.imwrite(str(folder / name), image)
        images.append(
            {
                'id': index,
                'file_name': name,
                'width': WIDTH,
                'height': HEIGHT,
            }
        )
        for label, box in parts:
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': index,
                    'category_id': label + 1,
                    'bbox': list(box),
                    'area': box[2] * box[3],
                    'iscrowd': 0,
                }
            )
    categories = [
        {'id': number, 'name': name}
        for number, name in enumerate(CLASSES, start=1)
    ]
    content = {
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }
    (folder / f'{split}.json').write_text(json.dumps(content))


def generate(folder: Path, *, splits: dict[str, int] | None = None) -> bool:
    """Write the data set, unless this version of it is there.

    Args:
        folder: Where to; replaced as a whole.
        splits: Images of each split; None takes ``SPLITS``.

    Returns:
        Whether it was made anew.
    """
    splits = SPLITS if splits is None else splits
    wanted = {'version': VERSION, 'seed': SEED, 'splits': splits}
    stamp = folder / 'generator.json'
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    for split, num_images in splits.items():
        make_split(folder, split=split, num_images=num_images)
    # Written last: a set that was cut short is made anew.
    stamp.write_text(json.dumps(wanted))
    return True
