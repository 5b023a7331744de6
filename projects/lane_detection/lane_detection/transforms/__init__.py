"""Transforms that move lanes together with their image."""

from .augment import LaneAffine, LaneFlip
from .frame import LaneCrop, LaneResize
from .loading import LoadLaneAnnotations, LoadLaneImage
from .packing import PackLaneInputs
from .photometric import LanePhotometric

__all__ = [
    'LaneAffine',
    'LaneCrop',
    'LaneFlip',
    'LanePhotometric',
    'LaneResize',
    'LoadLaneAnnotations',
    'LoadLaneImage',
    'PackLaneInputs',
]
