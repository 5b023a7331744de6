"""Layer 4: one file for each idea from a paper."""
from taskptq.methods.attention_centering import AttentionCentering
from taskptq.methods.bimodal_integration import BimodalIntegration
from taskptq.methods.key_shift import KeyShift
from taskptq.methods.lane_distortion import (
    LaneDistortion,
    lane_distortion_score,
    sample_lanes,
)
from taskptq.methods.rewrite import RewriteEntry, RewriteReport
from taskptq.methods.selective_focus import (
    NetworkUniform,
    SelectiveFocusLoss,
)

__all__ = [
    'AttentionCentering',
    'BimodalIntegration',
    'KeyShift',
    'LaneDistortion',
    'NetworkUniform',
    'RewriteEntry',
    'RewriteReport',
    'SelectiveFocusLoss',
    'lane_distortion_score',
    'sample_lanes',
]
