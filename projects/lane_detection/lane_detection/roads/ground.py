"""Draw everything flat: road, verge, paint, patches, shadows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .scene import WHITE, Camera, Line, Scene

__all__ = ['Ground', 'draw_ground', 'smooth_noise']

TILE = 256  # pixels of a texture, which repeats
FAR = 400.0  # meters; beyond is the horizon


@dataclass(frozen=True)
class Ground:
    """The part of an image below the horizon, pixel by pixel.

    Attributes:
        camera: Camera in pixels of the image.
        scene: The scene.
        first_row: First row of the part.
        depth: (R, 1) float32, meters ahead.
        lateral: (R, W) float32, meters right of the center of the car's lane.
        pixel_width: (R, 1), meters that a pixel covers sideways.
        pixel_depth: (R, 1), meters that a pixel covers ahead.
    """

    camera: Camera
    scene: Scene
    first_row: int
    depth: np.ndarray
    lateral: np.ndarray
    pixel_width: np.ndarray
    pixel_depth: np.ndarray

    @classmethod
    def of(cls, scene: Scene, *, shape: tuple[int, int]) -> Ground:
        """Build it for an image of (h, w) pixels."""
        height, width = shape
        camera = scene.camera.scaled(
            width / scene.frame.shape[1], height / scene.frame.shape[0]
        )
        first = int(np.ceil(camera.horizon + 0.5))
        rows = np.arange(first, height, dtype=np.float32) + 0.5
        depth = np.minimum(camera.depth(rows), FAR)[:, None]
        depth = depth.astype(np.float32)
        pixel_width = depth / np.float32(camera.focal)
        columns = np.arange(width, dtype=np.float32) + np.float32(
            0.5 - camera.center
        )
        lateral = columns * pixel_width - scene.curve.lateral(depth)
        return cls(
            camera,
            scene,
            first,
            depth,
            lateral.astype(np.float32),
            pixel_width,
            depth**2
            / np.float32(camera.focal * camera.aspect * camera.height),
        )

    def polygon(self, lateral: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Return (n, 2) pixels of the part, int32, of points on the road.

        Args:
            lateral: (n,) meters right of the center of the car's lane.
            depth: (n,) meters ahead.
        """
        points = self.camera.project(
            lateral + self.scene.curve.lateral(depth), depth
        )
        points[:, 1] -= self.first_row
        return points.clip(-20000, 20000).round().astype(np.int32)

    def strip(
        self,
        left: float,
        right: float,
        near: float,
        far: float,
        *,
        slant: float = 0.0,
    ) -> np.ndarray:
        """Return the polygon of a piece of road that follows the curve.

        Args:
            left: Meters right of the center of the car's lane.
            right: Meters right of the center of the car's lane.
            near: Meters ahead.
            far: Meters ahead.
            slant: Meters that the far end is moved to the right.
        """
        depth = np.linspace(near, far, 12)
        move = np.linspace(0, slant, 12)
        return self.polygon(
            np.concatenate([left + move, (right + move)[::-1]]),
            np.concatenate([depth, depth[::-1]]),
        )


@lru_cache(maxsize=16)
def noise_tile(index: int) -> np.ndarray:
    """Return a texture that repeats seamlessly, (TILE, TILE) float32.

    Values have mean 0 and a standard deviation of 1.
    """
    rng = np.random.default_rng((7, index))
    tile = np.zeros((TILE, TILE), dtype=np.float32)
    for cells, weight in ((8, 1.0), (32, 0.8), (128, 0.8)):
        coarse = rng.standard_normal((cells, cells)).astype(np.float32)
        wrapped = np.pad(coarse, 2, mode='wrap')
        step = TILE // cells
        large = cv2.resize(
            wrapped, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC
        )
        tile += weight * large[2 * step : -2 * step, 2 * step : -2 * step]
    return (tile - tile.mean()) / tile.std()


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]
) -> np.ndarray:
    """Return blurred noise, ``shape`` float32, from a coarse grid."""
    coarse = rng.standard_normal(cells).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR)


def texture(
    ground: Ground, rng: np.random.Generator, *, per_meter: float
) -> np.ndarray:
    """Return a texture on the ground, (R, W) float32.

    It fades out where its grain is finer than a pixel.
    """
    tile = noise_tile(int(rng.integers(12)))
    offset = rng.uniform(0, TILE, 2).astype(np.float32)
    columns = ground.lateral * np.float32(per_meter) + offset[0]
    rows = ground.depth * np.float32(per_meter) + offset[1]
    values = cv2.remap(
        tile,
        columns,
        np.broadcast_to(rows, columns.shape).copy(),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )
    grain = ground.pixel_depth * np.float32(per_meter)
    return values / (1 + 0.3 * grain)


def draw_ground(
    scene: Scene, rng: np.random.Generator, *, shape: tuple[int, int]
) -> tuple[Ground, np.ndarray]:
    """Draw the part of an image below the horizon.

    Args:
        scene: The scene.
        rng: Source of everything that the scene does not define.
        shape: Height and width of the image in pixels.

    Returns:
        The ground and its picture, (R, W, 3) float32 BGR in about [0, 255].
    """
    ground = Ground.of(scene, shape=shape)
    fine = texture(ground, rng, per_meter=rng.uniform(12, 30))
    coarse = texture(ground, rng, per_meter=rng.uniform(0.7, 2.5))
    picture = surface(ground, rng, fine, coarse)
    paint(ground, rng, picture, coarse)
    shade = shading(ground, rng, coarse)
    picture *= shade[..., None]
    return ground, picture


def coverage(ground: Ground, left: float, right: float) -> np.ndarray:
    """Return how much of each pixel lies between two lines, (R, W)."""
    half = np.float32((right - left) / 2)
    away = np.abs(ground.lateral - np.float32((left + right) / 2))
    share = (half - away) / ground.pixel_width + np.float32(0.5)
    # A line thinner than a pixel cannot fill it.
    most = np.minimum(2 * half / ground.pixel_width, 1)
    return np.clip(share, 0, most, out=share)


def surface(
    ground: Ground,
    rng: np.random.Generator,
    fine: np.ndarray,
    coarse: np.ndarray,
) -> np.ndarray:
    """Draw asphalt or concrete between verges, (R, W, 3)."""
    tone = rng.uniform(55, 145)
    road = tone * (
        1 + rng.uniform(0.03, 0.1) * fine + rng.uniform(0.01, 0.05) * coarse
    )
    tint = 1 + rng.uniform(-0.06, 0.06, 3).astype(np.float32)
    verges = ((50, 95, 75), (70, 100, 120), (120, 120, 122), (40, 70, 60))
    verge = np.array(verges[rng.integers(len(verges))], dtype=np.float32)
    verge = verge * rng.uniform(0.7, 1.3)
    left, right = ground.scene.edges
    mask = coverage(ground, left, right)
    if rng.random() < 0.4:
        curb = coverage(ground, left - 0.25, right + 0.25) - mask
        fine = fine + curb * np.float32(rng.uniform(1, 4))
    rough = 1 + rng.uniform(0.1, 0.25) * fine + 0.1 * coarse
    # Road and verge differ in brightness and in tint.
    gray = (road * mask)[..., None] * tint
    return gray + (rough * (1 - mask))[..., None] * verge


def dashes(ground: Ground, line: Line) -> np.ndarray:
    """Return how much of each row's line is painted, (R, 1)."""
    if line.dash is None:
        return np.ones_like(ground.depth)
    length, gap = line.dash
    period = length + gap
    place = (ground.depth + np.float32(line.phase)) % period
    # Distance into the dash from its nearer end, negative in the gap.
    inside = np.minimum(place, length - place)
    inside = np.maximum(inside, place - period)
    sharp = np.clip(inside / ground.pixel_depth + 0.5, 0, 1)
    blurred = ground.pixel_depth > period / 2
    return np.where(blurred, length / period, sharp).astype(np.float32)


def line_mask(ground: Ground, line: Line) -> np.ndarray:
    """Return the opacity of a line in each pixel, (R, W)."""
    half = line.width / 2
    sides = (-0.9 * line.width, 0.9 * line.width) if line.double else (0.0,)
    masks = [
        coverage(
            ground, line.position + side - half, line.position + side + half
        )
        for side in sides
    ]
    mask = masks[0] if len(masks) == 1 else np.maximum(*masks)
    return mask * (dashes(ground, line) * np.float32(line.strength))


def paint(
    ground: Ground,
    rng: np.random.Generator,
    picture: np.ndarray,
    worn: np.ndarray,
) -> None:
    """Paint lines, arrows and crosswalks onto the road, in place."""
    masks: dict[tuple[float, float, float], np.ndarray] = {}
    for line in ground.scene.lines:
        mask = line_mask(ground, line)
        # Wear comes in patches, those of the surface.
        mask *= np.clip(1.1 - line.wear * (1 + 0.7 * worn), 0.25, 1)
        there = masks.get(line.color)
        masks[line.color] = mask if there is None else np.maximum(there, mask)
    signs = sign_mask(ground, rng)
    if signs is not None:
        there = masks.get(WHITE)
        masks[WHITE] = signs if there is None else np.maximum(there, signs)
    for color, mask in masks.items():
        blend(picture, mask, color)


def blend(
    picture: np.ndarray, mask: np.ndarray, color: tuple[float, float, float]
) -> None:
    """Blend a color into a picture where the mask is set, in place."""
    columns = np.flatnonzero(mask.max(axis=0))
    if len(columns) == 0:
        return
    window = slice(columns[0], columns[-1] + 1)
    part = picture[:, window]
    part += mask[:, window, None] * (np.array(color, np.float32) - part)


def sign_mask(ground: Ground, rng: np.random.Generator) -> np.ndarray | None:
    """Return the opacity of arrows and crosswalks, (R, W), or None."""
    scene = ground.scene
    if not scene.arrows and scene.crosswalk is None:
        return None
    mask = np.zeros(ground.lateral.shape, dtype=np.float32)
    strength = float(rng.uniform(0.5, 0.9))
    if scene.crosswalk is not None:
        left, right = scene.edges
        near, far = scene.crosswalk, scene.crosswalk + rng.uniform(2.5, 4)
        for start in np.arange(left + 0.4, right - 0.6, 1.1):
            piece = ground.strip(start, start + 0.5, near, far)
            cv2.fillPoly(mask, [piece], strength)
    if scene.arrows:
        for lane in range(-1, 2):
            center = lane * scene.lane_width
            near = rng.uniform(7, 25)
            if scene.edges[0] < center < scene.edges[1]:
                draw_arrow(ground, mask, center, near, strength)
    return mask


def draw_arrow(
    ground: Ground,
    mask: np.ndarray,
    center: float,
    near: float,
    strength: float,
) -> None:
    """Draw an arrow straight ahead: shaft and head."""
    shaft = ground.strip(center - 0.1, center + 0.1, near, near + 2.6)
    head = ground.polygon(
        center + np.array([-0.35, 0.35, 0.0]), near + np.array([2.4, 2.4, 4.0])
    )
    cv2.fillPoly(mask, [shaft], strength)
    cv2.fillPoly(mask, [head], strength)


def shading(
    ground: Ground, rng: np.random.Generator, coarse: np.ndarray
) -> np.ndarray:
    """Return the brightness factor of each pixel: seams, patches, shadows."""
    shade = np.ones(ground.lateral.shape, dtype=np.float32)
    left, right = ground.scene.edges
    for _ in range(int(rng.integers(0, 4))):
        start, near = rng.uniform(left, right), rng.uniform(5, 40)
        size = rng.uniform((0.5, 1.5), (3, 12))
        piece = ground.strip(start, start + size[0], near, near + size[1])
        cv2.fillPoly(shade, [piece], float(rng.uniform(0.75, 1.12)))
    # Seams and cracks run along the lanes: dark, where lines are bright.
    for _ in range(int(rng.integers(0, 4))):
        start, near = rng.uniform(left, right), rng.uniform(3, 15)
        piece = ground.strip(
            start,
            start + rng.uniform(0.03, 0.1),
            near,
            near + rng.uniform(8, 50),
            slant=rng.uniform(-1.5, 1.5),
        )
        cv2.fillPoly(shade, [piece], float(rng.uniform(0.5, 0.8)))
    if ground.scene.shadows:
        cast_shadows(ground, rng, shade, coarse)
    return shade


def cast_shadows(
    ground: Ground,
    rng: np.random.Generator,
    shade: np.ndarray,
    coarse: np.ndarray,
) -> None:
    """Draw the shadows of trees (ragged) and walls (straight)."""
    dark = float(rng.uniform(0.4, 0.65))
    left, right = ground.scene.edges
    mask = np.zeros_like(shade)
    for _ in range(int(rng.integers(1, 5))):
        near, slant = rng.uniform(4, 35), rng.uniform(-6, 6)
        length = rng.uniform(1, 9)
        ends = (left - 4, rng.uniform(left, right + 4))
        if rng.random() < 0.5:
            ends = (rng.uniform(left - 4, right), right + 4)
        piece = ground.polygon(
            np.array([ends[0], ends[1], ends[1], ends[0]]),
            np.maximum(
                near + np.array([0, slant, slant + length, length]), 2.0
            ),
        )
        cv2.fillPoly(mask, [piece], 1.0)
    if rng.random() < 0.6:
        mask *= np.clip(0.6 + coarse, 0, 1)
    mask = cv2.GaussianBlur(mask, (0, 0), 1.2)
    shade *= 1 - (1 - dark) * mask
