"""Layer 4: one file for each idea from a paper."""
from taskptq.methods.attention_centering import AttentionCentering
from taskptq.methods.bimodal_integration import BimodalIntegration
from taskptq.methods.key_shift import KeyShift
from taskptq.methods.rewrite import RewriteEntry, RewriteReport

__all__ = [
    'AttentionCentering',
    'BimodalIntegration',
    'KeyShift',
    'RewriteEntry',
    'RewriteReport',
]
