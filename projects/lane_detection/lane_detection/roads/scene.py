"""Random road scenes, and where their lanes are.

The ground is flat. A point of it lies ``lateral`` meters right of the camera
and ``depth`` meters ahead; lines of a road are at a fixed distance from the
center of the lane that the car is in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

__all__ = [
    'CULANE_FRAME',
    'TUSIMPLE_FRAME',
    'Camera',
    'Car',
    'Curve',
    'Frame',
    'Line',
    'Scene',
    'draw_scene',
    'lane_points',
]

Number = TypeVar('Number', float, np.ndarray)
WHITE, YELLOW = (235.0, 238.0, 240.0), (80.0, 190.0, 235.0)
# A lane visible in fewer rows is not annotated.
MIN_POINTS = 4


@dataclass(frozen=True)
class Frame:
    """Frame of the annotations of a data set.

    Attributes:
        shape: Height and width in pixels.
        rows: y of the rows in which lanes are annotated, from the bottom up.
        horizon: Range of the horizon's row, relative to the height.
        focal: Range of the focal length, relative to the width.
    """

    shape: tuple[int, int]
    rows: tuple[int, ...]
    horizon: tuple[float, float]
    focal: tuple[float, float]


CULANE_FRAME = Frame(
    (590, 1640), tuple(range(590, 240, -10)), (0.43, 0.52), (0.55, 0.8)
)
TUSIMPLE_FRAME = Frame(
    (720, 1280), tuple(range(710, 150, -10)), (0.32, 0.44), (0.7, 1.0)
)


@dataclass(frozen=True)
class Camera:
    """A level camera that looks along the road.

    Attributes:
        focal: Focal length in pixels.
        height: Height above the ground in meters.
        horizon: Row of the horizon in pixels.
        center: Column of the point straight ahead in pixels.
        aspect: Width of a pixel over its height; an image of a rounded size
            has pixels that are not quite square.
    """

    focal: float
    height: float
    horizon: float
    center: float
    aspect: float = 1.0

    def depth(self, rows: np.ndarray) -> np.ndarray:
        """Return the distance in meters of the ground visible in rows."""
        return self.focal * self.aspect * self.height / (rows - self.horizon)

    def project(
        self, lateral: np.ndarray, depth: np.ndarray, up: float = 0.0
    ) -> np.ndarray:
        """Return x and y in pixels, (..., 2), of points above the ground.

        Args:
            lateral: Meters right of the camera.
            depth: Meters ahead.
            up: Meters above the ground.
        """
        lateral, depth = np.broadcast_arrays(lateral, depth)
        scale = self.focal / depth
        return np.stack(
            [
                self.center + lateral * scale,
                self.horizon + (self.height - up) * self.aspect * scale,
            ],
            axis=-1,
        )

    def scaled(self, x: float, y: float) -> Camera:
        """Return the camera of an image that is larger by x and y."""
        return replace(
            self,
            focal=self.focal * x,
            horizon=self.horizon * y,
            center=self.center * x,
            aspect=self.aspect * y / x,
        )


@dataclass(frozen=True)
class Curve:
    """Center of the car's lane, a cubic of the depth.

    Attributes:
        offset: Meters right of the camera.
        heading: Slope.
        bend: Curvature in 1/m.
        twist: Change of the curvature in 1/m^2.
    """

    offset: float
    heading: float
    bend: float
    twist: float

    def lateral(self, depth: Number) -> Number:
        """Return meters right of the camera at a depth in meters."""
        return (
            self.offset
            + self.heading * depth
            + self.bend / 2 * depth**2
            + self.twist / 6 * depth**3
        )


@dataclass(frozen=True)
class Line:
    """A painted line.

    Attributes:
        slot: 0 to 3 from left to right; 1 and 2 bound the car's lane.
        position: Meters right of the center of the car's lane.
        width: Meters.
        color: BGR in [0, 255].
        dash: Lengths of a dash and of a gap in meters; None if solid.
        phase: Start of the dashes, in meters.
        strength: Opacity of the paint.
        wear: Share of worn-off paint.
        double: Whether there are two lines side by side.
    """

    slot: int
    position: float
    width: float
    color: tuple[float, float, float]
    dash: tuple[float, float] | None
    phase: float
    strength: float
    wear: float
    double: bool


@dataclass(frozen=True)
class Car:
    """A vehicle seen from behind.

    Attributes:
        position: Meters right of the center of the car's lane.
        depth: Meters ahead.
        width: Meters.
        height: Meters.
        color: BGR in [0, 255].
    """

    position: float
    depth: float
    width: float
    height: float
    color: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """Everything that :func:`.render.render` draws.

    Attributes:
        frame: Frame of the annotations.
        camera: Camera in pixels of that frame.
        curve: Center of the car's lane.
        lines: Painted lines from left to right.
        lane_width: Meters.
        edges: Left and right edge of the road, meters from the center of the
            car's lane.
        cars: Vehicles from far to near.
        light: ``'day'``, ``'dusk'`` or ``'night'``.
        shadows: Whether trees and buildings throw shadows on the road.
        glare: Whether a light dazzles the camera.
        arrows: Whether arrows are painted in the lanes.
        crosswalk: Depth of a crosswalk in meters; None for none.
        fog: Visibility in meters; None for no fog.
        hood: Height of the own car's hood, relative to the image.
    """

    frame: Frame
    camera: Camera
    curve: Curve
    lines: tuple[Line, ...]
    lane_width: float
    edges: tuple[float, float]
    cars: tuple[Car, ...]
    light: str
    shadows: bool
    glare: bool
    arrows: bool
    crosswalk: float | None
    fog: float | None
    hood: float

    @property
    def category(self) -> str:
        """The best fitting CULane category."""
        sharp = (
            abs(
                self.curve.lateral(60.0)
                - self.curve.lateral(0.0)
                - 60 * self.curve.heading
            )
            > 8
        )
        by_rank = {
            'cross': not self.lines,
            'night': self.light == 'night',
            'hlight': self.glare,
            'crowd': len(self.cars) > 3,
            'shadow': self.shadows,
            'curve': sharp,
            'arrow': self.arrows,
        }
        return next((name for name, fits in by_rank.items() if fits), 'normal')


def draw_scene(
    rng: np.random.Generator, *, frame: Frame = CULANE_FRAME
) -> Scene:
    """Draw a scene at random."""
    lane_width = rng.uniform(3.1, 3.8)
    crossing = rng.random() < 0.03
    lines = () if crossing else draw_lines(rng, lane_width)
    positions = [line.position for line in lines] or [
        -0.5 * lane_width,
        0.5 * lane_width,
    ]
    light = str(rng.choice(['day', 'dusk', 'night'], p=[0.72, 0.13, 0.15]))
    day = light == 'day'
    return Scene(
        frame=frame,
        camera=draw_camera(rng, frame),
        curve=draw_curve(rng, lane_width),
        lines=lines,
        lane_width=lane_width,
        edges=(
            min(positions) - rng.uniform(0.3, 3.0),
            max(positions) + rng.uniform(0.3, 3.0),
        ),
        cars=draw_cars(rng, lane_width, positions),
        light=light,
        shadows=bool(day and rng.random() < 0.3),
        glare=bool(rng.random() < 0.06),
        arrows=bool(not crossing and rng.random() < 0.15),
        crosswalk=rng.uniform(12, 30)
        if crossing or rng.random() < 0.04
        else None,
        fog=rng.uniform(40, 140) if rng.random() < 0.12 else None,
        hood=rng.uniform(0.03, 0.2) if rng.random() < 0.3 else 0.0,
    )


def draw_camera(rng: np.random.Generator, frame: Frame) -> Camera:
    """Draw height, direction and focal length of the camera."""
    height, width = frame.shape
    return Camera(
        focal=rng.uniform(*frame.focal) * width,
        height=rng.uniform(1.2, 1.7),
        horizon=rng.uniform(*frame.horizon) * height,
        center=rng.uniform(0.45, 0.55) * width,
    )


def draw_curve(rng: np.random.Generator, lane_width: float) -> Curve:
    """Draw straight, bent and sharply bent roads, some of them S-shaped."""
    bounds = ((0.0, 1.5), (2.0, 9.0), (9.0, 18.0))
    kind = rng.choice(3, p=[0.35, 0.45, 0.2])
    # Sideways displacement of the road after 60 m, in meters.
    moved = rng.uniform(*bounds[kind]) * rng.choice([-1, 1])
    twisted = rng.uniform(-6, 6) if rng.random() < 0.4 else 0.0
    changing = rng.random() < 0.08
    offset = (
        rng.uniform(0.3, 0.42) * rng.choice([-1, 1])
        if changing
        else rng.uniform(-0.2, 0.2)
    )
    return Curve(
        offset=offset * lane_width,
        heading=rng.uniform(-0.03, 0.03),
        bend=2 * moved / 60**2,
        twist=6 * twisted / 60**3,
    )


def draw_lines(
    rng: np.random.Generator, lane_width: float
) -> tuple[Line, ...]:
    """Draw two to four lines around the car's lane."""
    slots = [1, 2]
    if rng.random() < 0.7:
        slots.insert(0, 0)
    if rng.random() < 0.7:
        slots.append(3)
    width = rng.uniform(0.1, 0.2)
    dash = (rng.uniform(2.5, 6.5), rng.uniform(4, 9.5))
    wear = rng.uniform(0, 0.45)
    lines = []
    for slot in slots:
        outer = slot in (slots[0], slots[-1])
        solid = rng.random() < (0.75 if outer else 0.2)
        yellow = rng.random() < (0.3 if slot == slots[0] else 0.05)
        lines.append(
            Line(
                slot=slot,
                position=(slot - 1.5) * lane_width,
                width=width,
                color=YELLOW if yellow else WHITE,
                dash=None if solid else dash,
                phase=rng.uniform(0, 15),
                strength=rng.uniform(0.6, 1.0),
                wear=wear,
                double=bool(solid and rng.random() < 0.15),
            )
        )
    return tuple(lines)


def draw_cars(
    rng: np.random.Generator, lane_width: float, positions: list[float]
) -> tuple[Car, ...]:
    """Draw vehicles in the lanes, from far to near, without overlap."""
    number = int(
        rng.choice([0, 1, 2, 3, 4, 6], p=[0.25, 0.2, 0.2, 0.15, 0.1, 0.1])
    )
    first = round(min(positions) / lane_width + 0.5)
    last = round(max(positions) / lane_width - 0.5)
    cars: list[Car] = []
    for _ in range(number):
        lane = int(rng.integers(first, last + 1))
        depth = float(rng.uniform(14 if lane == 0 else 8, 80))
        position = (lane + rng.uniform(-0.12, 0.12)) * lane_width
        if any(
            abs(position - car.position) < 2.2 and abs(depth - car.depth) < 9
            for car in cars
        ):
            continue
        large = rng.random() < 0.2
        tone = rng.uniform(20, 230)
        cars.append(
            Car(
                position=position,
                depth=depth,
                width=rng.uniform(2.2, 2.5)
                if large
                else rng.uniform(1.6, 1.9),
                height=rng.uniform(2.4, 3.4)
                if large
                else rng.uniform(1.3, 1.7),
                color=tuple(np.clip(tone + rng.uniform(-50, 50, 3), 5, 250)),
            )
        )
    return tuple(sorted(cars, key=lambda car: -car.depth))


def lane_points(scene: Scene) -> list[tuple[int, np.ndarray]]:
    """Return the lanes as an annotator would draw them.

    Lanes continue under vehicles and the hood, and end where they leave the
    image, reach the horizon, or become flat.

    Returns:
        (slot, points) of each lane, points (n, 2) float32 in pixels of the
        frame, from the bottom up, in the frame's rows.
    """
    height, width = scene.frame.shape
    rows = np.array(scene.frame.rows, dtype=np.float64)
    rows = rows[rows > scene.camera.horizon + 0.025 * height]
    depth = scene.camera.depth(rows)
    center = scene.curve.lateral(depth)
    lanes = []
    for line in scene.lines:
        points = scene.camera.project(center + line.position, depth)
        x = points[:, 0]
        steep = np.abs(np.diff(x, append=x[-1:])) < 10 * np.abs(
            rows[0] - rows[1]
        )
        inside = (x > -0.01 * width) & (x < 1.01 * width) & steep
        start, stop = longest_run(inside)
        if stop - start >= MIN_POINTS:
            lanes.append((line.slot, points[start:stop].astype(np.float32)))
    return lanes


def longest_run(flags: np.ndarray) -> tuple[int, int]:
    """Return start and end of the longest run of True."""
    padded = np.concatenate(([False], flags, [False])).astype(np.int8)
    changes = np.diff(padded)
    starts, stops = np.flatnonzero(changes > 0), np.flatnonzero(changes < 0)
    if len(starts) == 0:
        return 0, 0
    best = int(np.argmax(stops - starts))
    return int(starts[best]), int(stops[best])
