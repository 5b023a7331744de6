"""Layer 4: one file for each idea from a paper."""
from taskptq.methods.attention_centering import AttentionCentering
from taskptq.methods.bimodal_integration import BimodalIntegration
from taskptq.methods.box_grid import (
    BoxGrid,
    nonuniform_grid,
    one_sided_grid,
    uniform_grid,
)
from taskptq.methods.distribution_loss import ForegroundKLLoss
from taskptq.methods.equalization import (
    CrossLayerEqualization,
    equalizing_scales,
)
from taskptq.methods.key_shift import KeyShift
from taskptq.methods.lane_distortion import (
    LaneDistortion,
    lane_distortion_score,
    sample_lanes,
)
from taskptq.methods.query_agreement import (
    MatchedAgreement,
    distillation_distance,
    matched_agreement,
)
from taskptq.methods.query_distillation import QueryDistillationLoss
from taskptq.methods.query_matching import (
    QueryMatch,
    foreground_queries,
    giou_matrix,
    match_queries,
    nwd_matrix,
    teacher_partners,
)
from taskptq.methods.rewrite import RewriteEntry, RewriteReport
from taskptq.methods.selective_focus import (
    NetworkUniform,
    SelectiveFocusLoss,
)
from taskptq.methods.wasserstein import wasserstein_similarity

__all__ = [
    'AttentionCentering',
    'BimodalIntegration',
    'BoxGrid',
    'CrossLayerEqualization',
    'ForegroundKLLoss',
    'KeyShift',
    'LaneDistortion',
    'MatchedAgreement',
    'NetworkUniform',
    'QueryDistillationLoss',
    'QueryMatch',
    'RewriteEntry',
    'RewriteReport',
    'SelectiveFocusLoss',
    'distillation_distance',
    'equalizing_scales',
    'foreground_queries',
    'giou_matrix',
    'lane_distortion_score',
    'match_queries',
    'matched_agreement',
    'nonuniform_grid',
    'nwd_matrix',
    'one_sided_grid',
    'sample_lanes',
    'teacher_partners',
    'uniform_grid',
    'wasserstein_similarity',
]
