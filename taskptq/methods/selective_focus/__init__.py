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

__all__ = [
    'LaneDistortion',
    'NetworkUniform',
    'SelectiveFocusLoss',
    'lane_distortion_score',
    'sample_lanes',
]
