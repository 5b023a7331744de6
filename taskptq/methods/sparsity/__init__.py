"""Post-training sparsity: zeros at an exact rate, by learned rates too.

FCPTS: Gong et al., 'Fast and controllable post-training sparsity', AAAI 2024.
"""

from taskptq.methods.sparsity.report import SparsityReport
from taskptq.methods.sparsity.sparsify import sparsify

__all__ = ['SparsityReport', 'sparsify']
