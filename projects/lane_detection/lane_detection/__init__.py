"""Lane detectors of four families, with their data and official metrics.

Importing the package registers its classes with mmdet's registries, and its
recipes with taskptq (``recipe='w4a4_selective-focus'``), so
``custom_imports = dict(imports=['lane_detection'])`` is all a config needs.
"""

from taskptq.recipes import register_folder

from . import (
    adapters,
    datasets,
    geometry,
    metrics,
    models,
    network_parts,
    structures,
    transforms,
    visualization,
)
from .datasets import CULaneDataset, CurveLanesDataset, TuSimpleDataset
from .metrics import (
    CULaneMetric,
    CurveLanesMetric,
    LaneDistortionMetric,
    LaneDump,
    TuSimpleMetric,
)
from .models import LaneDetector, LaneHead
from .structures import LaneDataSample
from .visualization import LaneVisualizationHook, draw_lanes, draw_sample

__all__ = [
    'CULaneDataset',
    'CULaneMetric',
    'CurveLanesDataset',
    'CurveLanesMetric',
    'LaneDataSample',
    'LaneDetector',
    'LaneDistortionMetric',
    'LaneDump',
    'LaneHead',
    'LaneVisualizationHook',
    'TuSimpleDataset',
    'TuSimpleMetric',
    'adapters',
    'datasets',
    'draw_lanes',
    'draw_sample',
    'geometry',
    'metrics',
    'models',
    'network_parts',
    'structures',
    'transforms',
    'visualization',
]

register_folder('lane_detection.recipes')
