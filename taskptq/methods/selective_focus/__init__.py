"""Selective Focus: semantic and anchor-guided losses for lane heads."""

from taskptq.methods.selective_focus.lane_distortion import (
    LaneDistortion,
    lane_distortion_score,
    sample_lanes,
)
from taskptq.methods.selective_focus.loss import (
    NetworkUniform,
    SelectiveFocusLoss,
)
from taskptq.methods.selective_focus.soft_distortion import SoftDistortionLoss

__all__ = [
    'LaneDistortion',
    'NetworkUniform',
    'SelectiveFocusLoss',
    'SoftDistortionLoss',
    'lane_distortion_score',
    'sample_lanes',
]
