"""Roads drawn from a seed, in the layouts of CULane and TuSimple.

``python -m lane_detection.roads --out work_dirs/roads`` writes a set.
"""

from .generate import RoadSet, generate
from .render import render
from .scene import (
    CULANE_FRAME,
    TUSIMPLE_FRAME,
    Frame,
    Scene,
    draw_scene,
    lane_points,
)

__all__ = [
    'CULANE_FRAME',
    'TUSIMPLE_FRAME',
    'Frame',
    'RoadSet',
    'Scene',
    'draw_scene',
    'generate',
    'lane_points',
    'render',
]
