"""Q-DETR: query alignment and distillation of matched queries."""

from taskptq.methods.qdetr.agreement import (
    MatchedAgreement,
    distillation_distance,
    matched_agreement,
)
from taskptq.methods.qdetr.alignment import AlignedQuantizer
from taskptq.methods.qdetr.loss import QueryDistillationLoss
from taskptq.methods.qdetr.matching import (
    QueryMatch,
    foreground_queries,
    giou_matrix,
    match_queries,
    nwd_matrix,
    teacher_partners,
)

__all__ = [
    'AlignedQuantizer',
    'MatchedAgreement',
    'QueryDistillationLoss',
    'QueryMatch',
    'distillation_distance',
    'foreground_queries',
    'giou_matrix',
    'match_queries',
    'matched_agreement',
    'nwd_matrix',
    'teacher_partners',
]
