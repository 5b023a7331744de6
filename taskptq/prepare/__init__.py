"""Layer 2: from a float model to one with quantizers in place."""
from __future__ import annotations

from torch import nn

from taskptq.modules import leave_fast_paths, share_inputs
from taskptq.prepare.blocks import Unit, split_blocks
from taskptq.prepare.fuse import fuse_batchnorm
from taskptq.prepare.qconfig import QConfig
from taskptq.prepare.swap import SwapReport, swap

__all__ = [
    'QConfig',
    'SwapReport',
    'Unit',
    'fuse_batchnorm',
    'prepare',
    'split_blocks',
    'swap',
]


def prepare(model: nn.Module, qconfig: QConfig) -> SwapReport:
    """Fold BatchNorms, then swap in the counterparts, in place.

    Args:
        model: Float model in eval mode.
        qconfig: Recipe.
    """
    folded = fuse_batchnorm(model)
    report = swap(model, qconfig)
    share_inputs(model)
    leave_fast_paths(model)
    report.folded = folded
    return report
