"""Lane detectors: a base, and the heads and necks of each family."""

from .bezier_head import BezierLaneHead
from .bezier_neck import BezierNeck
from .condlane_head import CondLaneHead
from .detector import LaneDataPreprocessor, LaneDetector
from .ganet_head import GANetHead
from .lane_head import LaneHead, lane_instances
from .laneatt_head import LaneATTHead
from .lstr import LSTRHead, LSTRResNet
from .resa import BilateralUpsampler, RESANeck
from .scnn import SCNNNeck, SliceConv
from .segmentation_head import SegmentationHead
from .trans_fpn import TransFPN

__all__ = [
    'BezierLaneHead',
    'BezierNeck',
    'BilateralUpsampler',
    'CondLaneHead',
    'GANetHead',
    'LSTRHead',
    'LSTRResNet',
    'LaneATTHead',
    'LaneDataPreprocessor',
    'LaneDetector',
    'LaneHead',
    'RESANeck',
    'SCNNNeck',
    'SegmentationHead',
    'SliceConv',
    'TransFPN',
    'lane_instances',
]
