"""Metrics of lanes, and the pure functions behind them."""

from .culane_metric import CULaneMetric, CurveLanesMetric
from .distortion_metric import LaneDistortionMetric
from .lane_dump import LaneDump
from .tusimple_metric import TuSimpleMetric

__all__ = [
    'CULaneMetric',
    'CurveLanesMetric',
    'LaneDistortionMetric',
    'LaneDump',
    'TuSimpleMetric',
]
