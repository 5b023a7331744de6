"""Lane data sets in their official layouts."""

from .culane import CULaneDataset
from .curvelanes import CurveLanesDataset
from .tusimple import TuSimpleDataset

__all__ = ['CULaneDataset', 'CurveLanesDataset', 'TuSimpleDataset']
